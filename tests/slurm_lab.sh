#!/usr/bin/env bash
# A Slurm on this machine, with fake GPUs and without accounting, for tests and benchmarks. It has one
# node, and a second one beside it in the partition `pair`.
#
#   tests/slurm_lab.sh start    start munged, slurmctld and slurmd in $SLURM_LAB and wait for its nodes
#   tests/slurm_lab.sh stop     stop what `start` started
#
# Needs root and Debian's slurm-wlm. Partitions: main (default), gpu, pair, and urgent, whose jobs preempt
# and requeue those of the others. Nothing outside $SLURM_LAB is touched but two links in /etc/slurm, which
# `stop` takes away: jobs drop SLURM_CONF from their environment and look there.
set -euo pipefail
LAB=${SLURM_LAB:?set SLURM_LAB to a folder for the state}
CPUS=${LAB_CPUS:-4} GPUS=${LAB_GPUS:-2} PORT=${LAB_PORT:-16817}
MEM=400000 # MB; nothing holds jobs to it
HANGS=600 # seconds after which something hangs
HOST=$(hostname -s)
NODES=("$HOST" "$HOST-two")
export SLURM_CONF=$LAB/etc/slurm.conf

alive() { # daemon: the process of its pid file runs, and is that daemon
  local pid
  pid=$(cat "$LAB/run/$1.pid" 2> /dev/null) && [[ -n $pid ]] || return 1
  [[ $(tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null) == *"${1%%.*}"* ]]
}

wait_for() { # seconds, command
  local tries=$(($1 * 10))
  shift
  until "$@" > /dev/null 2>&1; do
    ((tries--)) || { echo "timed out: $*" >&2; return 1; }
    sleep 0.1
  done
}

configure() {
  mkdir -p "$LAB"/{etc,run,log,state,munge,dev} "${NODES[@]/#/$LAB/spool.}"
  chmod 755 "$LAB" "$LAB/munge"
  [[ -s $LAB/munge/key ]] || (umask 077; head -c 1024 /dev/urandom > "$LAB/munge/key")
  # Clones of /dev/null, where the machine lets us: with a mere count, jobs have their GPUs all the
  # same, but no CUDA_VISIBLE_DEVICES.
  local devices=File=$LAB/dev/gpu[0-$((GPUS - 1))]
  for ((i = 0; i < GPUS; i++)); do
    [[ -c $LAB/dev/gpu$i ]] || mknod "$LAB/dev/gpu$i" c 1 3 2> /dev/null || devices=Count=$GPUS
  done
  cat > "$LAB/etc/gres.conf" << CONF
NodeName=$HOST,$HOST-two Name=gpu Type=fake $devices Flags=nvidia_gpu_env
CONF
  cat > "$SLURM_CONF" << CONF
ClusterName=lab
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
AuthType=auth/munge
AuthInfo=socket=$LAB/munge/socket
CredType=cred/munge
MessageTimeout=100
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool.%n
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/slurmd.%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=1,sched_min_interval=200000
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=DEFAULT CPUs=$CPUS RealMemory=$MEM Gres=gpu:fake:$GPUS State=UNKNOWN
NodeName=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 1))
NodeName=$HOST-two NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 2))
PartitionName=main   Nodes=$HOST Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=gpu    Nodes=$HOST MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=pair   Nodes=$HOST,$HOST-two MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=$HOST MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
CONF
  mkdir -p /etc/slurm
  for file in slurm.conf gres.conf; do
    if [[ -e /etc/slurm/$file && $(readlink "/etc/slurm/$file") != "$LAB/etc/$file" ]]; then
      echo "/etc/slurm/$file is there already: this machine has a Slurm of its own" >&2
      exit 3
    fi
    ln -sfn "$LAB/etc/$file" "/etc/slurm/$file"
  done
}

start() {
  configure
  munged --force --key-file="$LAB/munge/key" --socket="$LAB/munge/socket" \
    --pid-file="$LAB/run/munged.pid" --seed-file="$LAB/munge/seed" --log-file="$LAB/log/munged.log"
  wait_for "$HANGS" munge -n -S "$LAB/munge/socket"
  slurmctld -i
  wait_for "$HANGS" scontrol ping
  for node in "${NODES[@]}"; do slurmd -N "$node"; done
  wait_for "$HANGS" bash -c "! sinfo -h -p pair -N -o %T | grep -Evq 'idle|mixed|allocated'"
}

stop() {
  alive slurmctld && timeout 10 scancel --user root && sleep 1 || true
  for daemon in "${NODES[@]/#/slurmd.}" slurmctld munged; do
    alive "$daemon" || continue
    pid=$(cat "$LAB/run/$daemon.pid")
    kill "$pid"
    wait_for 20 test ! -d "/proc/$pid" || kill -9 "$pid"
  done
  for file in slurm.conf gres.conf; do
    if [[ $(readlink "/etc/slurm/$file") == "$LAB/etc/$file" ]]; then rm "/etc/slurm/$file"; fi
  done
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) echo "usage: SLURM_LAB=FOLDER $0 start|stop" >&2; exit 2 ;;
esac
