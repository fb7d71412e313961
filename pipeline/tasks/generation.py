"""The ways to ask a model: replies, greedy or sampled, and the log-likelihood of text."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.core.settings import BUILT
from pipeline.tasks.base import Generation
from pipeline.tasks.shots import Shots

TOO_LONG = "too-long"
"""The `stop` of an item whose prompt left no room for a reply, so that it was not put to the model."""


class Prompted(Generation):
    """Prompts, perhaps with worked examples before them."""

    shots: Annotated[Shots | None, BUILT] = Field(default=None, description="worked examples before the prompt")


class Replies(Prompted):
    """A reply to every prompt, from BOS and the prompt on, to EOS, a stop string or the limit."""

    kind: ClassVar[str] = "replies"

    max_new_tokens: int = Field(ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(description="strings that end a reply and are cut")
    too_long: Literal["refuse", "count"] = Field(
        description="a prompt that leaves no room for max_new_tokens: stop with its name, or count it as a failed item"
    )


class Greedy(Replies):
    """The most probable token after the other."""


class Sampled(Replies):
    """Tokens drawn as transformers does: temperature, then `top_k`, then `top_p`.

    Each draw is a function of (seed, row, place in the reply): a reply repeats whatever else is asked. It repeats bit
    for bit where the logits do, hence for one device, dtype and batch size. It is not the reply that transformers would
    draw with this seed, for transformers draws for a whole batch from one generator of the device.
    """

    temperature: float = Field(gt=0)
    top_k: int = Field(ge=1)
    top_p: float = Field(gt=0, le=1)
    seed: int = Field(ge=0)


class Answers(Prompted):
    """Log-likelihood of answers after their prompt: of the right one, or of all that there are to choose from.

    The prompt is read from BOS on. An answer is encoded apart from it, as in training, and is scored without EOS.
    """

    kind: ClassVar[str] = "answers"

    too_long: Literal["refuse", "cut"] = Field(
        description="a prompt and an answer longer than the context: stop with its name, or cut the prompt's beginning "
        "off, as lm-eval does, and count it"
    )


class Likelihood(Generation):
    """Log-likelihood of all texts joined, in chunks of `context` tokens that do not overlap.

    GPTQ's protocol (Frantar et al. 2022, arXiv:2210.17323): the joined text is tokenized once, the remainder is
    dropped, and a chunk is scored on its `context` - 1 shifted targets.
    """

    kind: ClassVar[str] = "likelihood"

    context: int = Field(ge=2, description="tokens of a chunk")
    separator: str = Field(description="stands between two texts")
    start: Literal["bos", "tokenizer"] = Field(
        description="what the joined text starts with: BOS where there is one, or what the tokenizer adds by itself, "
        "as in GPTQ's code (a BOS of Llama's, nothing of GPT-2's)"
    )


class LineBlocks(Generation):
    """Log-likelihood of texts tokenized one by one, in blocks of `context` tokens: transformers' example run_clm.py.

    Each text gets the special tokens that its tokenizer adds (Llama's: a BOS a line). The tokens of `lines` texts are
    joined and cut, and what is left after their last whole block is dropped, as `datasets.map` does with its batches.
    """

    kind: ClassVar[str] = "likelihood"

    context: int = Field(ge=2, description="tokens of a block")
    lines: int = Field(ge=1, description="texts that are joined; 1000 is the batch of datasets.map")


class Rolling(Generation):
    """Log-likelihood of every text, in windows of `context` tokens: lm-eval's loglikelihood_rolling.

    Every token is scored once, the first after BOS (EOS where there is none). A window is read after the one token
    before it; the last window starts earlier, so that it is full, and only its new tokens are scored.
    """

    kind: ClassVar[str] = "text-likelihood"

    context: int = Field(ge=1, description="tokens that the model reads at once; lm-eval's is the model's own maximum")


Texts = Likelihood | LineBlocks | Rolling
"""What is asked of texts as a whole."""
