#!/bin/sh
# A client in POSIX shell: printf, and a redirection to the FIFO for every record.
#
# It is both the implementation and its driver (protocol/driver.md, role client). Strings stay
# JSON-escaped from the request to the record, so that no JSON library is needed.
#
# What a shell cannot do it declines: it has no non-blocking open, no deadline for a write and no
# clock but the wall's; each with its reason in `hello`.

fifo=
version=2

# text KEY: the string of this field in $request, still escaped; number KEY: its number.
text() {
    printf '%s' "$request" | sed -n 's/.*"'"$1"'": "\(\([^"\\]\|\\.\)*\)".*/\1/p'
}
number() {
    printf '%s' "$request" | sed -n 's/.*"'"$1"'": \(-\{0,1\}[0-9.]*\).*/\1/p'
}

reply() {
    printf '%s\n' "$1"
}

hello() {
    reply '{"name": "printf and a redirection", "language": "POSIX shell", "versions": [1, 2],
        "roles": ["client"], "pid": '$$', "skips": {
        "client-reports-a-missing-server": "a redirection blocks until the FIFO has a reader",
        "client-release-without-a-server-is-quiet": "a redirection blocks until the FIFO has a reader",
        "client-raises-no-sigpipe": "a redirection blocks until the FIFO has a reader",
        "client-finds-a-returned-server": "a redirection blocks until the FIFO has a reader",
        "client-reopens-onto-the-same-number": "the FIFO is opened for every record",
        "client-full-pipe-acquire-is-bounded": "a shell has no deadline for a write",
        "client-full-pipe-release-is-bounded": "a shell has no deadline for a write",
        "client-full-pipe-release-is-quiet": "a shell has no deadline for a write",
        "fork": "a subshell is forked by the shell, not by its script",
        "thread": "a shell has no threads", "enter": "no guards", "handler": "no guards"}}' |
        tr -d '\n'
    echo
}

# is_ours PATH: a FIFO of this user or of root (SPEC C-4).
is_ours() {
    [ -p "$1" ] || return 1
    [ -O "$1" ] || [ "$(stat -c %u "$1")" = 0 ]
}

open_client() {
    fifo=$(text path)
    : "${fifo:=${FILETIMER_PATH:-${TORCHELASTIC_TIMER_FILE:-}}}" # SPEC T-1
    version=$(number version)
    if [ -z "$fifo" ]; then
        reply '{"error": "no path"}' # SPEC C-9
    elif ! is_ours "$fifo"; then
        fifo=
        reply '{"error": "the path is no FIFO of ours"}'
    else
        reply '{"ok": true}'
    fi
}

# identity: the optional fields of version 2 that a shell can know (SPEC V-4).
identity() {
    [ "$version" = 2 ] || return 0
    stat=$(cat "/proc/$$/stat") && stat=${stat##*) } || return 0
    set -- $stat
    shift 19
    printf ', "start_time": %s' "$1"
}

# send SCOPE TIME SIGNAL: one record in one write (SPEC F-3).
send() {
    LC_ALL=C
    line=$(printf '{"version": %s, "pid": %s, "scope_id": "%s", "expiration_time": %s, "signal": %s%s}' \
        "$version" "$$" "$1" "$2" "$3" "$(identity)")
    if [ -z "$fifo" ]; then
        reply '{"error": "no client is open"}'
    elif [ -z "$1" ]; then
        reply '{"error": "the scope is empty"}' # SPEC R-11
    elif [ "${#line}" -ge 4096 ]; then
        reply '{"error": "the line is longer than PIPE_BUF"}' # SPEC F-2
    elif is_ours "$fifo" && printf '%s\n' "$line" >"$fifo"; then
        reply '{"ok": true}'
    else
        reply '{"error": "there is no FIFO of ours any more"}'
    fi
}

# Whole seconds, rounded up: a shell has no fractions.
expiry() {
    after=$(number after)
    echo $(($(date +%s) + ${after%.*}))
}

while IFS= read -r request; do
    case $request in
    *'"op": "hello"'*) hello ;;
    *'"op": "noop"'*) reply '{"ok": true}' ;;
    *'"op": "open"'*) open_client ;;
    *'"op": "acquire"'*) send "$(text scope_id)" "$(expiry)" "$(number signal)" ;;
    *'"op": "release"'*) send "$(text scope_id)" -1 0 ;;
    *) reply '{"unsupported": "no such op"}' ;;
    esac
done
