"""The wording of prompts: one place for the tasks and for the demo's pre-training text."""


def question_answer(question: str) -> str:
    """Return lm-eval's prompt of `gsm8k` without examples."""
    return f"Question: {question}\nAnswer:"


def document_summary(document: str) -> str:
    """Return the prompt of a document to summarize."""
    return f"Document: {document}\nSummary:"
