rule finetune:
    """Train one adapter: one point of the sweep."""
    input:
        model=PLAN.needs("finetune", "model"),
        base=PLAN.needs("finetune", "base"),
        data=PLAN.needs("finetune", "data"),
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
    shell:
        "python -m pipeline finetune --gpus {resources.gpu} --config {params.cfg:q}"
        " --input model={input.model:q} base={input.base:q} data={input.data:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule merge:
    """Merge the adapter in every way, and measure what survives."""
    input:
        model=PLAN.needs("merge", "model"),
        base=PLAN.needs("merge", "base"),
        train=PLAN.needs("merge", "train"),
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
    shell:
        "python -m pipeline merge --gpus {resources.gpu} --config {params.cfg:q}"
        " --input model={input.model:q} base={input.base:q} train={input.train:q}"
        " --output record={output.record:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"
