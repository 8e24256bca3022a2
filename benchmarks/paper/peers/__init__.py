"""The rivals' own code on the paper's tasks, each script run in the peers' environment.

    python -m venv DIR && DIR/bin/pip install -r benchmarks/timed/peers.txt
    DIR/bin/python -m benchmarks.paper.peers.with_textgrad textgrad  JOB.json RESULT.json
    DIR/bin/python -m benchmarks.paper.peers.with_trace    optoprime JOB.json RESULT.json
    DIR/bin/python -m benchmarks.paper.peers.with_dspy     copro     JOB.json RESULT.json

(with_dspy also runs miprov2 and gepa.) Nothing here imports textautograd. What a job and a result
hold is in `job.py`; how DSPy's searches are sized, in `sizes.py`. Calls go through
`benchmarks.paper.server`, which counts them.
"""
