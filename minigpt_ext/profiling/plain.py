"""The tool "none": the job alone, marked out for whichever profiler has started it.

On a GPU the warm-up comes before cudaProfilerStart, and ranges go to NVTX: `ncu --profile-from-start off` and
`nsys --capture-range=cudaProfilerApi` see the job and nothing else.
"""

import torch

from minigpt_ext.profiling import ranges
from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.workload import WARM_UP, prepare


def profile(job: Job) -> None:
    """Run the job, and print what it was."""
    load = prepare(job)
    for _ in range(WARM_UP):
        load.run()
    if job.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        with ranges.shown("nvtx"):
            for _ in range(job.repeat):
                load.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    else:
        for _ in range(job.repeat):
            load.run()
    print(f"{load.title}: {job.repeat} {job.unit}(s) after {WARM_UP} to warm up")
