"""`python -m pipeline export`: what leaves the house computes what was scored."""

import copy
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.__main__ import main
from pipeline.adapters import files
from pipeline.adapters.bitfit import BitFit
from pipeline.adapters.dylora import DyLoRA
from pipeline.core import records
from pipeline.core.site import LINEAR_ROLES
from pipeline.models.adapt import adapt
from pipeline.models.load import load_base
from pipeline.models.states import Label, entered
from pipeline.models.trained import open_run
from pipeline.quantization.files import read
from pipeline.stages import merge
from tests.merging.test_stage import MERGED

IDS = torch.tensor([[1, 5, 9, 20, 3, 7]])
HARDWARE = {"device": "cpu", "threads": 1}
DYLORA = DyLoRA(max_rank=4, ranks=(2, 4), drawn="all", decay=1.0, alpha=6.0, frozen_rows=False, roles=LINEAR_ROLES)


@pytest.fixture
def finished(prepared, tmp_path):
    """Return a function that makes a finished run, merged, with its plan, and returns its folder."""

    def make(settings=DYLORA, format_="nf4-double", kind="llama"):
        _, model, manifest = prepared(kind, True, format_)
        run = tmp_path / "results" / "runs" / "tiny-dylora-s0-12345678"
        base = load_base(model, manifest, device="cpu", dtype="fp32")
        method = adapt(base, settings, 7, total_steps=3)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
        files.save(method, run / "adapter", base_name=kind)
        slice_ = {"adapter": settings.node(), "hardware": HARDWARE}
        hashes = {path.name: records.file_sha256(path) for path in (run / "adapter").iterdir()}
        train = slice_ | {"seed": 7, "training": {"steps": 3}}
        records.write(run / "train.json", stage="finetune", settings=train, result={"adapter_files": hashes}, about={})
        inputs = {"model": model, "base": manifest, "train": run / "train.json"}
        merge.run(slice_ | {"states": MERGED}, inputs, {"record": run / "merge.json"}, {"started": time.time()})
        stands = {"prepare_model": {"path": str(model)}, "quantize_base": {"path": str(manifest)}}
        plan = {"runs": [{"folder": f"runs/{run.name}", "records": stands}]}
        records.write(tmp_path / "results/tables/demo/sweep.json", stage="plan", settings={}, result=plan, about={})
        return run

    return make


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def export(run, *words):
    return main(["export", "tiny-dylora", *words, "--results", str(run.parents[1])])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("at", [1, 3, None])
def test_any_rank_is_a_plain_lora_to_peft(finished, prepared, tmp_path, capsys, at):
    peft = pytest.importorskip("peft")
    run = finished(format_="none")
    assert export(run, "--to", str(tmp_path / "out"), *(["--at", str(at)] if at else [])) == 0
    assert f"LoRA rank {at or 4}, in PEFT's format" in capsys.readouterr().out
    base, method = open_run(run)
    base.attach(method.export(at))
    expected = logits(base.model)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(prepared("llama", True, "none")[0]), tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_state_loads_in_transformers_and_is_the_one_that_was_scored(finished, tmp_path):
    run = finished()
    base, method = open_run(run)
    for state in ("merged-original", "merged-dequantized"):
        assert export(run, "--to", str(tmp_path / state), "--merged", state, "--at", "2") == 0
        with entered(base, method, Label(state, 2)):
            expected = logits(base.model)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / state, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-6, atol=1e-6)
        assert (tmp_path / state / "tokenizer.json").exists()


def test_a_requantized_state_is_stored_bit_for_bit(finished, tmp_path):
    run, state = finished(), "requantized-dequantized"
    assert export(run, "--to", str(tmp_path / "out"), "--merged", state) == 0
    base, method = open_run(run)
    quantized, _ = read(tmp_path / "out", base.format, [site.name for site in base.frozen()])
    with entered(base, method, Label(state, 4)) as digest:
        for site, frozen in base.frozen().items():
            assert torch.equal(base.format.dequantize(quantized[site.name]), frozen.dense_weight())
    said = records.read(tmp_path / "out" / "export.json", "export").result
    assert said == {"run": run.name, "state": f"{state}@r4", "digest": digest}


@pytest.mark.parametrize("kind", ["gpt2", "falcon"])
def test_fused_and_transposed_weights_leave_as_transformers_has_them(finished, tmp_path, capsys, kind):
    """The dense state of both; of the quantized one Falcon's, which transformers would initialize anew, is refused."""
    run = finished(kind=kind)
    base, method = open_run(run)
    for state in ("merged-original", "requantized-dequantized"):
        folder = tmp_path / state
        if (kind, state) == ("falcon", "requantized-dequantized"):
            assert export(run, "--to", str(folder), "--merged", state) == 1
            assert "transformers loads no FalconLinear quantized, and transformer.h.0." in capsys.readouterr().err
            assert not folder.exists()
            continue
        assert export(run, "--to", str(folder), "--merged", state) == 0
        with entered(base, method, Label(state, 4)):
            expected = logits(base.model)
        if state.startswith("requantized"):
            pytest.importorskip("bitsandbytes")
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for module in loaded.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # else it repacks weights at the first forward
                module.support_avx512bf16_for_cpu = False
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)


def test_a_format_that_no_other_tool_reads_leaves_dense_alone(finished, tmp_path, capsys):
    run = finished(format_="int4-affine")
    assert export(run, "--to", str(tmp_path / "out"), "--merged", "requantized-original") == 1
    assert "no other tool reads int4-affine; got requantized-original, allowed: merged-" in capsys.readouterr().err
    assert export(run, "--to", str(tmp_path / "out"), "--merged", "merged-dequantized") == 0


def test_other_weights_than_those_reported_do_not_leave(finished, tmp_path, capsys):
    run = finished()
    old = records.read(run / "merge.json")
    old.result["states"]["merged-original@r4"]["digest"] = "0" * 64
    records.write(run / "merge.json", stage="merge", settings=old.settings, result=old.result, about=old.about)
    assert export(run, "--to", str(tmp_path / "out"), "--merged") == 1
    assert "reports other weights of merged-original@r4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "9"], "has no rank 9: any from 1 to 4"),
        (["--merged", "merged-dequantized"], "the base is not quantized"),
    ],
)
def test_what_there_is_not_is_refused(finished, tmp_path, capsys, words, message):
    assert export(finished(format_="none"), "--to", str(tmp_path / "out"), *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_and_a_point_of_a_method_without_points_are_refused(finished, tmp_path, capsys):
    run = finished(BitFit(add_missing=True, roles=LINEAR_ROLES), "none")
    assert export(run, "--to", str(tmp_path)) == 1
    assert "nothing is written over" in capsys.readouterr().err
    assert export(run, "--to", str(tmp_path / "out"), "--at", "2") == 1
    assert "without ranks to choose from" in capsys.readouterr().err
    assert export(run, "--to", str(tmp_path / "out"), "--merged") == 1
    assert "has a bias now, and this architecture has none there" in capsys.readouterr().err
    assert export(run, "--to", str(tmp_path / "out")) == 0
    assert "for this package alone: PEFT has no such method" in capsys.readouterr().out
    assert files.not_in_peft(open_run(run)[1]) == records.read(tmp_path / "out" / files.RECORD).result["not_in_peft"]


def test_a_run_that_no_plan_names_says_what_to_do(finished, tmp_path, capsys):
    run = finished()
    (tmp_path / "results/tables/demo/sweep.json").unlink()
    assert export(run, "--to", str(tmp_path / "out")) == 1
    assert "Start its sweep again" in capsys.readouterr().err
