"""How the texts of a task are cut into what a model reads at once, for each kind of likelihood."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from pipeline.core.settings import SettingsError
from pipeline.steps.tokens import Tokenizer, prompt_ids
from pipeline.tasks.base import Generation, Row, Task
from pipeline.tasks.generation import Likelihood, LineBlocks, Rolling


@dataclass(frozen=True)
class Window:
    """Tokens that are read at once, and the targets that its last positions, or its first ones, are scored on."""

    item: str
    ids: list[int]
    targets: list[int]
    first: int
    """The position in `ids` that predicts the first target."""


@dataclass(frozen=True)
class Cut:
    """The windows of all texts, and how many tokens no window scores because the last block was not full."""

    windows: list[Window]
    dropped: int


def cut(task: Task, rows: list[Row], tokenizer: Tokenizer) -> Cut:
    """Tokenize the texts of `rows` and cut them as the task's generation says.

    Raises:
        SettingsError: not one window came of it.
    """
    asked, texts = task.generation, [task.answer(row) for row in rows]
    if isinstance(asked, Rolling):
        windows = [
            window
            for row, text in zip(rows, texts, strict=True)
            for window in rolling(row["id"], tokenizer, text, asked.context)
        ]
        return _some(task, Cut(windows, 0), asked)
    if isinstance(asked, LineBlocks):
        lines = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
        parts = [list(chain(*lines[start : start + asked.lines])) for start in range(0, len(lines), asked.lines)]
        return _some(task, _blocks(parts, asked.context), asked)
    assert isinstance(asked, Likelihood)
    joined = asked.separator.join(texts)
    own = asked.start == "tokenizer"
    tokens = tokenizer.encode(joined, add_special_tokens=True) if own else prompt_ids(tokenizer, joined)
    return _some(task, _blocks([tokens], asked.context), asked)


def rolling(item: str, tokenizer: Tokenizer, text: str, context: int) -> Iterator[Window]:
    """Yield lm-eval's disjoint windows of one text, which it encodes as the tokenizer does by itself.

    https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/utils.py (get_rolling_token_windows)
    """
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert prefix is not None
    tokens = tokenizer.encode(text, add_special_tokens=True)
    for start in range(0, len(tokens), context):
        targets = tokens[start : start + context]
        # One token before the targets, or what fills the window: lm-eval cuts the overlap away again.
        before = tokens[start + len(targets) - context - 1 : start] if start else [prefix]
        yield Window(item, [*before, *targets[:-1]], targets, len(before) - 1)


def _blocks(parts: list[list[int]], size: int) -> Cut:
    """Cut each part into whole blocks; what is left of it is dropped."""
    blocks = [part[start : start + size] for part in parts for start in range(0, len(part) - size + 1, size)]
    windows = [Window(f"chunk-{index:05}", block, block[1:], 0) for index, block in enumerate(blocks)]
    return Cut(windows, sum(map(len, parts)) - size * len(blocks))


def _some(task: Task, made: Cut, asked: Generation) -> Cut:
    if not made.windows:
        raise SettingsError(
            f"task.{task.name}.generation.context: got {getattr(asked, 'context', None)} tokens, all texts together "
            f"have {made.dropped}. Make it smaller."
        )
    return made
