# shellcheck shell=bash
# Sourced by the scripts that run microVMs, after setup.sh: decides whether they need the lab.

# need_lab: whether this machine's own KVM cannot run guests; says why in one line. A /dev/kvm without the processor's
# support is a software KVM, in which the usual guest kernels die.
need_lab() {
    local why
    if ! grep --quiet --word-regexp --extended-regexp 'vmx|svm' /proc/cpuinfo; then
        why="this processor shows no virtualization (vmx, svm)"
    elif [[ ! -e /dev/kvm ]]; then
        why="there is no /dev/kvm"
    elif [[ ! -r /dev/kvm || ! -w /dev/kvm ]]; then
        why="/dev/kvm is not open to $(id -un)"
    else
        return 1
    fi
    say "microVMs run in the lab, an emulated machine (scripts/lab): $why"
}

# lab_or_direct COMMAND...: runs it here, or in the lab where that is needed. LAB_OPTIONS, an array, is for the lab.
lab_or_direct() {
    if need_lab; then
        "$ROOT/scripts/lab" "${LAB_OPTIONS[@]}" -- "$@"
    else
        "$@"
    fi
}
