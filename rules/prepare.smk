rule prepare_model:
    """Build or link a model, and hash its files."""
    input:
        PLAN.needs("prepare_model"),
    output:
        record="results/models/{model}/manifest.json",
    log:
        "results/models/{model}/logs/prepare_model.log",
    conda:
        "../environment.yml"
    threads: PLAN.threads("prepare_model")
    resources:
        gpu=PLAN.hardware["gpus"],
        mem_mb=PLAN.hardware["mem_mb"],
        runtime=PLAN.hardware["runtime"],
    params:
        arguments=PLAN.arguments("prepare_model"),
    shell:
        "python -m pipeline prepare_model --gpus {resources.gpu} {params.arguments}"
        " --output record={output.record:q} > {log:q} 2>&1"


rule prepare_data:
    """Write a task's train, dev and test rows, and count what overlaps."""
    input:
        PLAN.needs("prepare_data"),
    output:
        record="results/data/{data}/manifest.json",
    log:
        "results/data/{data}/logs/prepare_data.log",
    conda:
        "../environment.yml"
    params:
        arguments=PLAN.arguments("prepare_data"),
    shell:
        "python -m pipeline prepare_data {params.arguments}" " --output record={output.record:q} > {log:q} 2>&1"


rule quantize_base:
    """Quantize a model once for every run on it, and measure the error of each layer."""
    input:
        PLAN.needs("quantize_base"),
    output:
        record="results/bases/{base}/manifest.json",
    log:
        "results/bases/{base}/logs/quantize_base.log",
    conda:
        "../environment.yml"
    threads: PLAN.hardware["threads"]
    resources:
        gpu=PLAN.hardware["gpus"],
        mem_mb=PLAN.hardware["mem_mb"],
        runtime=PLAN.hardware["runtime"],
    params:
        arguments=PLAN.arguments("quantize_base"),
    shell:
        "python -m pipeline quantize_base --gpus {resources.gpu} {params.arguments}"
        " --output record={output.record:q} > {log:q} 2>&1"
