rule evaluate:
    """Let a run in each of its states answer one task."""
    input:
        PLAN.needs("evaluate"),
    output:
        record="results/runs/{run}/evaluate/{task}.json",
        replies="results/runs/{run}/evaluate/{task}.jsonl",
    log:
        "results/runs/{run}/logs/evaluate.{task}.log",
    conda:
        "../environment.yml"
    threads: PLAN.hardware["threads"]
    resources:
        gpu=PLAN.hardware["gpus"],
        mem_mb=PLAN.hardware["mem_mb"],
        runtime=PLAN.hardware["runtime"],
    params:
        arguments=PLAN.arguments("evaluate"),
    shell:
        "python -m pipeline evaluate --gpus {resources.gpu} {params.arguments}"
        " --output record={output.record:q} items={output.replies:q} > {log:q} 2>&1"


rule evaluate_base:
    """Let a base without adapter answer one task."""
    input:
        PLAN.needs("evaluate_base"),
    output:
        record="results/bases/{base}/evaluate/{task}.json",
        replies="results/bases/{base}/evaluate/{task}.jsonl",
    log:
        "results/bases/{base}/logs/evaluate.{task}.log",
    conda:
        "../environment.yml"
    threads: PLAN.hardware["threads"]
    resources:
        gpu=PLAN.hardware["gpus"],
        mem_mb=PLAN.hardware["mem_mb"],
        runtime=PLAN.hardware["runtime"],
    params:
        arguments=PLAN.arguments("evaluate_base"),
    shell:
        "python -m pipeline evaluate --gpus {resources.gpu} {params.arguments}"
        " --output record={output.record:q} items={output.replies:q} > {log:q} 2>&1"


rule score:
    """Score all replies of a run by every rule of their tasks, without a model."""
    input:
        PLAN.needs("score"),
    output:
        record="results/runs/{run}/score/{scores}.json",
    log:
        "results/runs/{run}/logs/score.{scores}.log",
    conda:
        "../environment.yml"
    params:
        arguments=PLAN.arguments("score"),
    shell:
        "python -m pipeline score {params.arguments}" " --output record={output.record:q} > {log:q} 2>&1"


rule score_base:
    """Score all replies of a base by every rule of their tasks, without a model."""
    input:
        PLAN.needs("score_base"),
    output:
        record="results/bases/{base}/score/{scores}.json",
    log:
        "results/bases/{base}/logs/score.{scores}.log",
    conda:
        "../environment.yml"
    params:
        arguments=PLAN.arguments("score_base"),
    shell:
        "python -m pipeline score {params.arguments}" " --output record={output.record:q} > {log:q} 2>&1"
