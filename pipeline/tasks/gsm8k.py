"""GSM8K: grade-school word problems; the number after #### is the answer. Cobbe et al. 2021, arXiv:2110.14168.

One class a wording, for each belongs to a protocol. Every one is trained on as it is asked.
"""

from typing import ClassVar

from pipeline.tasks.base import Row, Task
from pipeline.tasks.prompts import question_answer

FINAL = "#### "


class GSM8K(Task):
    """lm-eval's wording of `gsm8k`."""

    example: ClassVar[Row] = {
        "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
        "How much did she earn?",
        "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
        "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    }
    hidden: ClassVar[str | None] = "answer"

    def prompt(self, row: Row) -> str:
        return question_answer(row["question"])

    def answer(self, row: Row) -> str:
        return f" {row['answer']}"

    def reference(self, row: Row) -> str:
        return row["answer"]


class ChainOfThought(GSM8K):
    """lm-eval's wording of `gsm8k_cot`; an answer ends as its examples do."""

    def prompt(self, row: Row) -> str:
        return f"Q: {row['question']}\nA:"

    def answer(self, row: Row) -> str:
        steps, _, final = row["answer"].rpartition(FINAL)
        return f" {' '.join(steps.split())} The answer is {final}."


class StepByStep(GSM8K):
    """The wording of PEFT's method comparison."""

    def prompt(self, row: Row) -> str:
        return f"Question: {row['question']} Think step by step.\nAnswer:"


class FinalAnswer(GSM8K):
    """The wording of LoftQ's train_gsm8k.py and test_gsm8k.py; the answer follows without a space."""

    def prompt(self, row: Row) -> str:
        return (
            f"{row['question']}\n"
            "Answer the above question. First think step by step and then answer the final number.\n"
        )

    def answer(self, row: Row) -> str:
        return row["answer"].replace("####", "The final answer is:")
