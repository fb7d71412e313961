"""One file a task: example row, prompt, answer; where its rows come from; the rules that score replies. No torch here."""
