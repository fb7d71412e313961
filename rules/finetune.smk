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
        arguments=PLAN.arguments("finetune"),
    shell:
        "python -m pipeline finetune --gpus {resources.gpu} {params.arguments}"
        " --output record={output.record:q} > {log:q} 2>&1"


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
        arguments=PLAN.arguments("merge"),
    shell:
        "python -m pipeline merge --gpus {resources.gpu} {params.arguments}"
        " --output record={output.record:q} > {log:q} 2>&1"
