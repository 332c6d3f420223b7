"""The one place where text that a model wrote may be evaluated.

    reward worker ── control ──► bwrap ─► zygote (has imported the checker, never sees a text)
         ▲                                  │ fork, one child a call: own pid, mount and ipc namespaces, no capability,
         └──────── one socket a call ───────┴─► seccomp filter, limits; whatever it is or does ends with the call

`launch` starts bubblewrap and says why it cannot, `pool` is what rewards call, `inside` is all that runs in there, with
the checkers `mathematics`, `gym`, `patterns` and `programs`.
"""
