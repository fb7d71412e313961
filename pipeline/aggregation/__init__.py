"""From records to what a person looks at: tidy rows, statistics, tables, figures, one report.

Everything here is a pure function of the `results/` folder: no clock, host, environment or network is read, so the
same records give the same bytes on any machine. Neither torch nor transformers is loaded.

Letters in shape suffixes: S seeds, N items (test questions, documents, or chunks of text), D bootstrap draws,
K lines of a table that are compared with each other.
"""
