"""One file a task: example row, prompt, answer. Where rows come from, and the rules that score replies. No torch."""
