"""The two ways to ask a model: greedy replies, and the log-likelihood of text."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.tasks.base import Generation


class Greedy(Generation):
    """The most probable token after the other, from BOS and the prompt on, to EOS, a stop string or the limit."""

    kind: ClassVar[str] = "greedy"

    max_new_tokens: int = Field(ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(description="strings that end a reply and are cut")
    too_long: Literal["refuse", "count"] = Field(
        description="a prompt that leaves no room for max_new_tokens: stop with its name, or count it as a failed item"
    )


class Likelihood(Generation):
    """Log-likelihood of all texts joined, in chunks of `context` tokens that do not overlap.

    GPTQ's protocol (Frantar et al. 2022, arXiv:2210.17323): the joined text is tokenized once after one BOS, the
    remainder is dropped, and a chunk is scored on its `context` - 1 shifted targets.
    """

    kind: ClassVar[str] = "likelihood"

    context: int = Field(ge=2, description="tokens of a chunk")
    separator: str = Field(description="stands between two texts")
