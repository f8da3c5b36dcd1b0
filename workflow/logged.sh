# `logged LOG COMMAND…` runs a command of a rule: all that it writes goes to the job's log, and when it
# fails, the last lines, which say what is wrong, go to the console as well.
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
