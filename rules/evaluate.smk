rule evaluate:
    """Let a run in each of its states answer one task."""
    input:
        model=PLAN.needs("evaluate", "model"),
        base=PLAN.needs("evaluate", "base"),
        train=PLAN.needs("evaluate", "train"),
        merge=PLAN.needs("evaluate", "merge"),
        data=PLAN.needs("evaluate", "data"),
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
    shell:
        "python -m pipeline evaluate --gpus {resources.gpu} --config {params.cfg:q}"
        " --input model={input.model:q} base={input.base:q} train={input.train:q} merge={input.merge:q} data={input.data:q}"
        " --output record={output.record:q} items={output.replies:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule evaluate_base:
    """Let a base without adapter answer one task."""
    input:
        model=PLAN.needs("evaluate_base", "model"),
        base=PLAN.needs("evaluate_base", "base"),
        data=PLAN.needs("evaluate_base", "data"),
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
    shell:
        "python -m pipeline evaluate --gpus {resources.gpu} --config {params.cfg:q}"
        " --input model={input.model:q} base={input.base:q} data={input.data:q}"
        " --output record={output.record:q} items={output.replies:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule score:
    """Score a run's replies by every rule of the task, without a model."""
    input:
        record=PLAN.needs("score", "record"),
        replies=PLAN.replies("score"),
        data=PLAN.needs("score", "data"),
    output:
        record="results/runs/{run}/score/{task}.json",
    log:
        "results/runs/{run}/logs/score.{task}.log",
    conda:
        "../environment.yml"
    params:
        cfg=PLAN.cfg("score"),
        code=PLAN.code("score"),
        upstream=PLAN.upstream("score"),
    shell:
        "python -m pipeline score --config {params.cfg:q}"
        " --input record={input.record:q} items={input.replies:q} data={input.data:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule score_base:
    """Score a base's replies by every rule of the task, without a model."""
    input:
        record=PLAN.needs("score_base", "record"),
        replies=PLAN.replies("score_base"),
        data=PLAN.needs("score_base", "data"),
    output:
        record="results/bases/{base}/score/{task}.json",
    log:
        "results/bases/{base}/logs/score.{task}.log",
    conda:
        "../environment.yml"
    params:
        cfg=PLAN.cfg("score_base"),
        code=PLAN.code("score_base"),
        upstream=PLAN.upstream("score_base"),
    shell:
        "python -m pipeline score --config {params.cfg:q}"
        " --input record={input.record:q} items={input.replies:q} data={input.data:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"
