# `logged LOG COMMAND…` runs the command of a rule and writes its output to the job's log. If it fails,
# the last lines, which say what is wrong, are also printed.
logged() {
  local log=$1
  shift
  "$@" > "$log" 2>&1 && return
  case " $* " in
    # torchrun ends with a report of its own, after the line that says it.
    *" torchrun "*) grep -m 1 -e Error: -e 'stopped by' "$log" >&2 || true ;;
    *) tail -n 3 "$log" >&2 ;;
  esac
  exit 2
}
