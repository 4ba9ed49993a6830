"""A real Slurm on this machine for as long as a test needs it: munged, slurmctld, slurmd on loopback, two GPUs, of two models, that are none.

Needs root. Slurm's programs are installed if they are absent (Debian and its children). The configuration has to lie in
/etc/slurm, because Snakemake's job step strips SLURM_CONF; what was there is put back at the end, or by the next run after
a kill. Ports, keys, sockets, states and logs are our own, so that a Slurm that runs here already is not touched.

``python tests/slurm/cluster.py COMMAND...`` runs a command with the cluster up, e.g. a shell to play in.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ETC, SAVED = Path("/etc/slurm"), Path("/etc/slurm.before-fpbench")
NODE = socket.gethostname().partition(".")[0]
CONF = """ClusterName=fpbench
SlurmctldHost={node}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=30
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=300
KillWait=20
ReturnToService=2
GresTypes=gpu
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:a100:1,gpu:v100:1
PartitionName=gpu Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


def call(*command: str) -> str:
    """Return what a command prints; an error says what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def install() -> None:
    """Install Slurm and munge if they are absent."""
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for step in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", "slurm-wlm", "munge"]):
            subprocess.run(["apt-get", *step], env=environment, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def configured(home: Path, memory: int) -> Iterator[None]:
    """Put our configuration into /etc/slurm; put back what was there."""
    put_back()
    if ETC.exists():
        ETC.rename(SAVED)
    else:
        SAVED.mkdir()  # empty: there was none
    try:
        ETC.mkdir()
        text = CONF.format(node=NODE, home=home, ports=free_ports(2), cpus=os.cpu_count(), memory=memory)
        (ETC / "slurm.conf").write_text(text)
        (ETC / "gres.conf").write_text("Name=gpu Type=a100 File=/dev/null\nName=gpu Type=v100 File=/dev/zero\n")
        yield
    finally:
        put_back()


def put_back() -> None:
    """Undo ``configured``, also that of a run that was killed."""
    if SAVED.exists():
        shutil.rmtree(ETC, ignore_errors=True)
        SAVED.rename(ETC) if any(SAVED.iterdir()) else SAVED.rmdir()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def daemon(home: Path, *command: str) -> Iterator[None]:
    """Run a daemon in the foreground, stop it at the end; it ends with us even if we are killed."""
    command = ("setpriv", "--pdeathsig", "TERM", *command)
    with open(home / f"{Path(command[3]).name}.out", "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def cluster(memory: int = 8000) -> Iterator[Path]:
    """Start a cluster of one node, wait until it is idle, yield the folder of its logs; stop it at the end."""
    install()
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, ExitStack() as stack:
        home = Path(folder)
        home.chmod(0o755)
        for name in ("state", "spool"):
            (home / name).mkdir()
        key = home / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        own = [f"--{name}-file={home}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        stack.enter_context(configured(home, memory))
        stack.enter_context(
            daemon(home, "munged", "--foreground", "--force", f"--socket={home}/munge.socket", "--num-threads=2", *own)
        )
        wait_for(lambda: (home / "munge.socket").exists(), 20, home)
        stack.enter_context(daemon(home, "slurmctld", "-D", "-c"))
        stack.enter_context(daemon(home, "slurmd", "-D"))
        stack.callback(subprocess.run, ["scancel", "--quiet", "--user=root"], check=False)
        wait_for(lambda: node_state() == "idle", 60, home)
        yield home


def node_state() -> str:
    """Return idle, mixed, drained, ...; empty while the controller does not answer."""
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def wait_for(condition, seconds: float, home: Path | None = None) -> None:
    """Wait until the condition holds; TimeoutError with the ends of the logs if it does not."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            logs = [*sorted(home.glob("*.out")), *sorted(home.glob("*.log"))] if home else []
            ends = "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs)
            raise TimeoutError(f"waited {seconds} s in vain\n{ends}")
        time.sleep(0.2)


if __name__ == "__main__":
    with cluster():
        raise SystemExit(subprocess.run(sys.argv[1:], check=False).returncode)
