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
        cfg=PLAN.cfg("evaluate"),
        code=PLAN.code("evaluate"),
        upstream=PLAN.upstream("evaluate"),
        inputs=PLAN.inputs("evaluate"),
    shell:
        "python -m pipeline evaluate --gpus {resources.gpu} --config {params.cfg:q} --input {params.inputs:q}"
        " --output record={output.record:q} items={output.replies:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


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
        cfg=PLAN.cfg("evaluate_base"),
        code=PLAN.code("evaluate_base"),
        upstream=PLAN.upstream("evaluate_base"),
        inputs=PLAN.inputs("evaluate_base"),
    shell:
        "python -m pipeline evaluate --gpus {resources.gpu} --config {params.cfg:q} --input {params.inputs:q}"
        " --output record={output.record:q} items={output.replies:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


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
        cfg=PLAN.cfg("score"),
        code=PLAN.code("score"),
        upstream=PLAN.upstream("score"),
        inputs=PLAN.inputs("score"),
    shell:
        "python -m pipeline score --config {params.cfg:q} --input {params.inputs:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


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
        cfg=PLAN.cfg("score_base"),
        code=PLAN.code("score_base"),
        upstream=PLAN.upstream("score_base"),
        inputs=PLAN.inputs("score_base"),
    shell:
        "python -m pipeline score --config {params.cfg:q} --input {params.inputs:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"
