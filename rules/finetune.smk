rule finetune:
    """Train one adapter: one point of the sweep."""
    input:
        PLAN.needs("finetune"),
    output:
        record="results/runs/{run}/train.json",
    log:
        "results/runs/{run}/logs/finetune.log",
    conda:
        "../environment.yml"
    threads: PLAN.hardware["threads"]
    resources:
        gpu=PLAN.hardware["gpus"],
        mem_mb=PLAN.hardware["mem_mb"],
        runtime=PLAN.hardware["runtime"],
    params:
        cfg=PLAN.cfg("finetune"),
        code=PLAN.code("finetune"),
        upstream=PLAN.upstream("finetune"),
        inputs=PLAN.inputs("finetune"),
    shell:
        "python -m pipeline finetune --gpus {resources.gpu} --config {params.cfg:q} --input {params.inputs:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule merge:
    """Merge the adapter in every way, and measure what survives."""
    input:
        PLAN.needs("merge"),
    output:
        record="results/runs/{run}/merge.json",
    log:
        "results/runs/{run}/logs/merge.log",
    conda:
        "../environment.yml"
    threads: PLAN.hardware["threads"]
    resources:
        gpu=PLAN.hardware["gpus"],
        mem_mb=PLAN.hardware["mem_mb"],
        runtime=PLAN.hardware["runtime"],
    params:
        cfg=PLAN.cfg("merge"),
        code=PLAN.code("merge"),
        upstream=PLAN.upstream("merge"),
        inputs=PLAN.inputs("merge"),
    shell:
        "python -m pipeline merge --gpus {resources.gpu} --config {params.cfg:q} --input {params.inputs:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"
