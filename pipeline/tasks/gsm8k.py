"""GSM8K: grade-school word problems; the number after #### is the answer. Cobbe et al. 2021, arXiv:2110.14168."""

from typing import ClassVar

from pipeline.tasks.base import Row, Task
from pipeline.tasks.prompts import question_answer


class GSM8K(Task):
    """Word problems, asked without examples."""

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
