"""docs/oft-choices.md says what its record says, and conf/adapter/oft.yaml follows it."""

from benchmarks.oft_choices import PAGE, RECORD, page
from pipeline.core import records
from tests.adapters import tiny


def test_the_page_is_made_from_the_record():
    assert PAGE.read_text(encoding="utf-8") == page(records.read(RECORD, "oft_choices").result)


def test_the_default_number_of_terms_is_the_one_with_the_lowest_dev_loss():
    found = records.read(RECORD, "oft_choices").result
    mean = {k: sum(run["dev_loss"] for run in found[f"oft b=16 k={k}"]) for k in ("4", "5", "exact")}
    assert min(mean, key=mean.get) == str(tiny.settings(tiny.ROOT / "conf/adapter/oft.yaml").terms)
