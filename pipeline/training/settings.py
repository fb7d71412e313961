"""Settings of a fine-tune. Light: read by every plan."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.core.settings import Settings


class Schedule(Settings):
    """Learning rate over the steps: linear warm-up, then constant, linear or cosine down to a fraction of the peak."""

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(ge=0)
    final_fraction: float = Field(ge=0, le=1)


class ChoiceLosses(Settings):
    """Weights of T-Few's losses beside the cross-entropy of the right answer; the paper's are 1."""

    unlikelihood: float = Field(ge=0)
    length_normalized: float = Field(ge=0)


def _rows(value: object) -> object:
    if value == "all" or (type(value) is int and value >= 1):
        return value
    raise ValueError("must be a whole number of at least 1, or all")


class Training(Settings):
    """One fine-tune, or the pre-training of a small base."""

    task: str
    train_rows: Annotated[int | Literal["all"], BeforeValidator(_rows)] = Field(
        default="all", description="rows of train, drawn by the seed: fewer are the first of more"
    )
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="rows of one optimizer step")
    micro_batch_size: int = Field(ge=1, description="rows of one forward and backward; gradients are accumulated")
    learning_rate: float = Field(gt=0)
    schedule: Schedule
    max_grad_norm: float = Field(gt=0, description="clipping of the global norm")
    precision: Literal["fp32", "bf16"] = "fp32"
    max_length: int = Field(ge=2, description="tokens of prompt and answer; longer rows are cut and counted")
    loss_on: Literal["answer", "all"] = "answer"
    choice_losses: ChoiceLosses | None = Field(default=None, description="for tasks with choices, any adapter")
    checkpoint_every: int = Field(ge=1, description="steps")
    divergence_factor: float = Field(
        gt=1, default=2.0, description="diverged when the mean loss of 20 steps exceeds this times the first loss"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Training":
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size must be at most batch_size ({self.batch_size}), got {self.micro_batch_size}"
            )
        if self.choice_losses and self.loss_on != "answer":
            raise ValueError(f"choice_losses compare answers: loss_on must be answer, got {self.loss_on}")
        if self.schedule.warmup_steps > self.steps:
            raise ValueError(
                f"schedule.warmup_steps must be at most steps ({self.steps}), got {self.schedule.warmup_steps}; "
                "lower it, or train longer"
            )
        return self


class Hardware(Settings):
    """Where the work is done. `device` and `threads` are settings of a result: both change bits."""

    device: Literal["cpu", "cuda", "auto"] = "cpu"
    threads: int = Field(ge=1)
    gpus: int = Field(ge=0, default=0, description="GPUs of one job")
    jobs_per_gpu: int = Field(
        ge=1, default=1, description="jobs that may share a GPU of this machine; more than 1 for small models, and the "
        "records then say that their times are not those of a device of one's own"
    )  # fmt: skip
    mem_mb: int = Field(ge=1, default=2000, description="host memory of one job, for schedulers")
    runtime: int = Field(ge=1, default=60, description="minutes of one job, for schedulers")
    price_per_hour: float | None = Field(gt=0, default=None, description="of what one job takes, in any currency")
