rule plan:
    """Write down what the table must hold: its runs, their settings, and where each record lies."""
    input:
        PLAN.due_of_table("sweep.json"),
    output:
        sweep="results/tables/{table}/sweep.json",
    log:
        "results/tables/{table}/logs/plan.log",
    priority: 1000  # first: a partial table, and gc, know the sweep by it
    conda:
        "../environment.yml"
    params:
        cfg=PLAN.plan_cfg,
        expected=str(PLAN.expected_file),
        code=PLAN.table_code("plan"),
        upstream=PLAN.table_upstream,
    shell:
        "python -m pipeline plan --config {params.cfg:q} --input expected={params.expected:q}"
        " --output sweep={output.sweep:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule aggregate:
    """Hold every record against the plan, and make the tables."""
    input:
        PLAN.due_of_table("aggregate.json"),
        sweep=PLAN.of_table("results/tables/{table}/sweep.json"),
        scores=PLAN.scores,
    output:
        record="results/tables/{table}/aggregate.json",
        rows="results/tables/{table}/rows.csv",
        layers="results/tables/{table}/layers.csv",
        tex="results/tables/{table}/table.tex",
        csv=report(
            "results/tables/{table}/table.csv",
            category="Table",
            labels={"sweep": "{table}", "kind": "csv"},
            caption="../docs/report/table.rst",
        ),
        md="results/tables/{table}/table.md",
        txt="results/tables/{table}/table.txt",
    log:
        "results/tables/{table}/logs/aggregate.log",
    conda:
        "../environment.yml"
    params:
        cfg=PLAN.report_cfg,
        code=PLAN.table_code("aggregate"),
        upstream=PLAN.table_upstream,
    shell:
        "python -m pipeline aggregate --config {params.cfg:q} --input sweep={input.sweep:q}"
        " --output record={output.record:q} rows={output.rows:q} layers={output.layers:q} tex={output.tex:q}"
        " csv={output.csv:q} md={output.md:q} txt={output.txt:q}"
        " --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule figures:
    """Draw the figures from the table's record."""
    input:
        record=PLAN.of_table("results/tables/{table}/aggregate.json"),
        sweep=PLAN.of_table("results/tables/{table}/sweep.json"),
    output:
        folder=report(
            directory("results/tables/{table}/figures"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels={"sweep": "{table}", "figure": "{figure}"},
            caption="../docs/report/figures.rst",
        ),
    log:
        "results/tables/{table}/logs/figures.log",
    conda:
        "../environment.yml"
    params:
        cfg=PLAN.report_cfg,
        code=PLAN.table_code("figures"),
        upstream=PLAN.table_upstream,
    shell:
        "python -m pipeline figures --config {params.cfg:q} --input record={input.record:q} sweep={input.sweep:q}"
        " --output folder={output.folder:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"


rule report:
    """Put table, figures, sample replies and provenance on one page that needs nothing else."""
    input:
        record=PLAN.of_table("results/tables/{table}/aggregate.json"),
        sweep=PLAN.of_table("results/tables/{table}/sweep.json"),
        figures=PLAN.of_table("results/tables/{table}/figures"),
    output:
        record="results/tables/{table}/report.json",
        html=report(
            "results/tables/{table}/report.html",
            category="Report",
            labels={"sweep": "{table}", "kind": "page"},
            caption="../docs/report/report.rst",
        ),
    log:
        "results/tables/{table}/logs/report.log",
    conda:
        "../environment.yml"
    params:
        cfg=PLAN.report_cfg,
        code=PLAN.table_code("report"),
        upstream=PLAN.table_upstream,
    shell:
        "python -m pipeline report --config {params.cfg:q}"
        " --input record={input.record:q} sweep={input.sweep:q} figures={input.figures:q}"
        " --output record={output.record:q} html={output.html:q} --code {params.code} --upstream {params.upstream} > {log:q} 2>&1"
