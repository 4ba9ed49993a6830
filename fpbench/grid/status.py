"""How far a study is, from any terminal or node that sees its results."""

import time

from fpbench.files.progress import span, words
from fpbench.grid.jobs import jobs, stale
from fpbench.study import Study


def status(study: Study) -> str:
    """Return how far a study is, as text: jobs done, running (on any host), waiting, failed, and when it will end."""
    plan, now = jobs(study), time.time()
    due, told = stale(plan), {name: job.running() for name, job in plan.items()}
    told = {name: about for name, about in told.items() if about and about["alive"] is not False}
    failed = {name: why for name in due if name not in told and (why := plan[name].failure())}
    waiting = [name for name in due if name not in told and name not in failed]
    count = f"{len(told)} running, {len(waiting)} waiting, {len(failed)} failed"
    lines = [f"{study.name}: {len(plan)} jobs: {len(set(plan) - set(due) - set(told))} done, {count}"]
    for name, one in told.items():
        where = f"{one['host']}, process {one['pid']}{' alive' * bool(one['alive'])}, wrote {now - one['updated']:.0f} s ago"
        lines.append(f"running  {name}  {words(one)}; {where}")
    for name, why in failed.items():
        lines += [f"failed   {name}  {why}", f"         {plan[name].path('notebooks', '.ipynb')}"]
    took: dict[str, list[float]] = {}  # seconds of finished jobs, by kind
    left, now = 0.0, time.time()
    for name, job in plan.items():
        took.setdefault(name.partition(".")[0], []).extend([job.record["seconds"]] if job.record else [])
    for name in [*waiting, *told]:
        known = took[name.partition(".")[0]]
        left += max(0.0, sum(known) / max(1, len(known)) - (now - told[name]["began"] if name in told else 0.0))
    if waiting or told:
        new = ", ".join(sorted({kind for name in [*waiting, *told] if not took[kind := name.partition(".")[0]]}))
        but = f"; not counted, for none has finished yet: {new}" if new else ""
        lines.append(f"about {span(left / max(1, len(told)))} to go, {max(1, len(told))} at once{but}")
    return "\n".join(lines)
