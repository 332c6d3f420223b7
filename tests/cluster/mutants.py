"""The rules of exactly-once switched off one by one: exact changes of the buffer's scripts, for test builds only."""

from __future__ import annotations

from cluster.buffer import connection

MUTANTS: dict[str, dict[str, tuple[str, str]]] = {
    # Rule 1: admission from counters.
    "admission is a pool of live groups": {
        "claim": ("(version + limit('max_staleness') + 1 - state('next_step'))", "(limit('max_staleness') + 1)"),
    },
    "admission counts the released version only": {"claim": ("- state('next_step'))", "- version)")},
    "ready groups take no place": {
        "claim": ("call('ZCARD', own .. 'open') + call('ZCARD', own .. 'ready')", "call('ZCARD', own .. 'open')")
    },
    # Rule 2: assemble in version order.
    "a learner passes over older groups": {"ready": ("oldest[2] and waits_for_late()", "false")},
    "ready groups come in any order": {
        "prelude": ("return version * 4294967296 + seq", "return seq % 2 * 4294967296 + version")
    },
    "late groups stay": {"ready": ("'-inf', bound)", "'-inf', '-inf')")},
    # Rule 3: dropped is final, and its task is claimed again first.
    "a dropped group's task is lost": {"prelude": ("if requeue and task then", "if false then")},
    "a filtered group's task comes back": {
        "record": ("drop(ARGV[i], ARGV[i + 1], false)", "drop(ARGV[i], ARGV[i + 1], true)")
    },
    "tasks that come back are claimed last": {
        "claim": (
            "call('LPOP', own .. 'requeued')",
            "call('LLEN', own .. 'requeued') > 2 and call('LPOP', own .. 'requeued')",
        )
    },
    "a dropped group stays where it was": {
        "prelude": ("  remove(id)\n  settle(id, 'dropped:'", "  settle(id, 'dropped:'")
    },
    "what is assembled can be dropped": {"drop": ("at and at ~= 'assembled'", "at")},
    "a death drops what was put": {"forsake": ("at == 'leased' and (dead", "(dead")},
    "filtered groups stay": {"record": ("for i = 6, first - 1, 2 do", "for i = 6, 5, 2 do")},
    # Rule 4: idempotent, with tokens and epochs.
    "a repeated claim opens another group": {"claim": ("if before then return", "if false then return")},
    "a repeated put of a group that left is refused": {
        "put": ("if answer_of('put:' .. ARGV[3]) then return {'ok'} end", "")
    },
    "a put needs no token": {"put": ("if token ~= ARGV[3] then return lost(id) end", "")},
    "a lost lease can be renewed": {"renew": ("expire()\n", "")},
    "a repeated giving up is refused": {"give_up": ("if answer_of('give_up:' .. ARGV[3]) then return {'ok'} end", "")},
    "a repeated score wins": {"score": ("'\\0' .. version, 1) == 1", "'\\0' .. version, 1) >= 0")},
    "a repeated record is refused": {"record": ("if before then return {'ok', before} end", "")},
    "a repeated release is refused": {"release": ("if version <= released(who) then return {'ok'} end", "")},
    "a repeated announcement goes back": {
        "announce": ("if before and tonumber(before) > step then return {'ok'} end", "")
    },
    "a repeated resume begins another epoch": {"resume": ("if before then return {'ok', tonumber(before)} end", "")},
    "a repeated question hands out more": {"unscored": ("if before then return {'ok', before} end", "")},
    "learners of old epochs are heard": {
        "prelude": ("if tonumber(epoch) == state('epoch') then return nil end", "if true then return nil end")
    },
    # Rule 5: a recorded step is assembled from its record.
    "a resume forgets the records": {
        "resume": (
            "  trim_before(step, manifest.trained)\n",
            "  trim_before(step, manifest.trained)\n  forget_records()\n",
        )
    },
    "an assembled group stays ready": {"record": ("  call('ZREM', own .. 'ready', id)\n", "")},
    # Rules 6 and 7: trimming follows the manifest, and so does a resume.
    "nothing is trimmed": {
        "prelude": (
            "local function trim_before(step, trained, most)\n",
            "local function trim_before(step, trained, most)\n  if true then return end\n",
        )
    },
    "a trim takes one step too many": {
        "trim": ("trim_before(manifest.step, manifest", "trim_before(manifest.step + 1, manifest")
    },
    "the manifest of a dead epoch trims": {"trim": ("manifest.epoch ~= state('epoch')", "false")},
    "a resume keeps what its checkpoint has trained": {"resume": ("  trim_before(step, manifest.trained)\n", "")},
    "a resume keeps the version": {
        "resume": ("'epoch', epoch, 'version', step)", "'epoch', epoch, 'version', math.max(step, state('version')))")
    },
    "a manifest forgets what is outstanding": {"snapshot": ("add(call('ZRANGE', own .. 'open', 0, -1))\n", "")},
    "a manifest forgets the queue": {"snapshot": ("call('LRANGE', own .. 'requeued', 0, -1)", "{}")},
    # Rule 8: nothing of a dead epoch at bound 0.
    "groups of a dead epoch are trained at bound 0": {
        "resume": ("if limit('max_staleness') == 0 then drop", "if false then drop")
    },
    "assembled groups of a dead epoch are forgotten at bound 0": {
        "resume": (
            "ipairs(members('open', 'ready', 'assembled')) do\n    ids[",
            "ipairs(members('open', 'ready')) do\n    ids[",
        )
    },
    # Rule 9: engines that are behind.
    "engines behind claim": {"claim": ("tonumber(ARGV[5]) < math.max(version, state('published_step'))", "false")},
    "engines of a dead epoch claim": {"claim": ("tonumber(ARGV[4]) ~= epoch or", "")},
    "a resume keeps the published weights": {
        "resume": ("call('HDEL', own .. 'state', 'published_step', 'left_at')", "")
    },
    # Rule 10: leases and deadlines.
    "leases do not pass": {"prelude": ("drop(passed[i], 'lease_expired', true)", "")},
    "score deadlines do not pass": {
        "prelude": ("      count('overdue')\n      make_ready(id)\n", "      count('overdue')\n")
    },
    "deadlines pass while Redis is away": {"fresh": ("call('ZADD', key, now + limit(period), member)", "")},
    # Rule 11: a roll-back is not a resume.
    "a roll-back is a resume": {"resume": ("ARGV[3] == '1' or", "")},
    "a resume before what was trimmed is no roll-back": {
        "resume": ("local trimmed_away = state('trimmed') > step", "local trimmed_away = false")
    },
    "a roll-back keeps the queue": {"resume": ("  call('DEL', own .. 'requeued')\n", "")},
    "a roll-back keeps the frontier": {
        "resume": ("'frontier', manifest.frontier, 'trimmed', step)", "'trimmed', step)")
    },
    "a roll-back keeps what came after": {"resume": ("drop(id, 'rolled_back', false)", "")},
    "a roll-back leaves trained groups in the ledger": {
        "resume": ("elseif trained_at and trained_at >= step then", "elseif false then")
    },
    # Judges that change their versions: evidence of one era, asked for anew.
    "scores of two versions are mixed": {"score": ("versions_of(era)[name] == version then", "true then")},
    "half of a new version is carried": {"score": ("and not any(still_missing) then", "then")},
    "a change of version asks nobody": {"relabel": ("        call('ZADD', run .. 'unscored', now, id)\n", "")},
    # A reward that ends its worker: suspects are tried alone, and the guilty one is condemned.
    "a death blames nothing": {"forsake": ("      call('SADD', run .. 'suspects', id)\n", "")},
    "a suspect is handed out with others": {"unscored": ("suspect and num_held == 0 then", "suspect then")},
    "a worker with a trial is handed more": {"unscored": ("not suspect and not on_trial", "not suspect")},
    "a suspect that ends a second worker is tried again": {"forsake": ("if blame and trial then", "if false then")},
    "a worker that leaves condemns what it had": {"forsake": ("if blame and trial then", "if trial then")},
    "a reward that was asked alone is tried for ever": {"tried": ("tried(id, ARGV[4])\n", "")},
    "a suspect is overdue before it is tried": {"prelude": ("'suspect') == 1 then -- a", "'suspect') == 2 then -- a")},
    "a trial clears all rewards of its group": {
        "tried": ("tried(id, ARGV[4])\n", "for _, name in ipairs(rewards()) do tried(id, name) end\n")
    },
    # Stored bytes that cannot be read.
    "the task of a group that cannot be read is lost": {
        "unreadable": ("drop(ARGV[2], 'unreadable', true)", "drop(ARGV[2], 'unreadable', false)")
    },
    "a group that cannot be read goes on waiting": {"unreadable": ("  drop(ARGV[2], 'unreadable', true)\n", "")},
    "a reward worker drops what the learner may have chosen": {
        "unreadable": ("== 'pending' then", "~= 'assembled' then")
    },
    # Rule 12: the ledger.
    "the ledger is trimmed": {
        "prelude": (
            "  call('UNLINK', group_key(id))\n",
            "  call('UNLINK', group_key(id))\n  call('HDEL', own .. 'ledger', id)\n",
        )
    },
    "drops are not in the ledger": {"prelude": ("settle(id, 'dropped:' .. reason)", "")},
}
"""What would be so → script → (text, replacement)."""


RARE = {
    "a learner passes over older groups",
    "a lost lease can be renewed",
    "a manifest forgets the queue",
    "a manifest forgets what is outstanding",
    "a resume keeps what its checkpoint has trained",
    "deadlines pass while Redis is away",
    "half of a new version is carried",
    "late groups stay",
    "scores of two versions are mixed",
}
"""Found only by longer searches."""

SEEDS = {
    "admission is a pool of live groups": 0,
    "admission counts the released version only": 0,
    "ready groups take no place": 0,
    "ready groups come in any order": 0,
    "a dropped group's task is lost": 0,
    "a filtered group's task comes back": 0,
    "tasks that come back are claimed last": 0,
    "a dropped group stays where it was": 0,
    "what is assembled can be dropped": 0,
    "a death drops what was put": 0,
    "filtered groups stay": 0,
    "a repeated claim opens another group": 0,
    "a repeated put of a group that left is refused": 0,
    "a put needs no token": 0,
    "a repeated giving up is refused": 1,
    "a repeated score wins": 0,
    "a repeated record is refused": 0,
    "a repeated release is refused": 0,
    "a repeated announcement goes back": 1,
    "a repeated resume begins another epoch": 0,
    "a repeated question hands out more": 0,
    "learners of old epochs are heard": 0,
    "a resume forgets the records": 0,
    "an assembled group stays ready": 0,
    "nothing is trimmed": 0,
    "a trim takes one step too many": 1,
    "the manifest of a dead epoch trims": 5,
    "a resume keeps the version": 0,
    "groups of a dead epoch are trained at bound 0": 0,
    "assembled groups of a dead epoch are forgotten at bound 0": 1,
    "engines behind claim": 0,
    "engines of a dead epoch claim": 0,
    "a resume keeps the published weights": 0,
    "leases do not pass": 0,
    "score deadlines do not pass": 0,
    "a roll-back is a resume": 0,
    "a resume before what was trimmed is no roll-back": 0,
    "a roll-back keeps the queue": 0,
    "a roll-back keeps the frontier": 0,
    "a roll-back keeps what came after": 0,
    "a roll-back leaves trained groups in the ledger": 0,
    "a change of version asks nobody": 0,
    "a death blames nothing": 0,
    "a suspect is handed out with others": 0,
    "a worker with a trial is handed more": 0,
    "a suspect that ends a second worker is tried again": 0,
    "a worker that leaves condemns what it had": 7,
    "a reward that was asked alone is tried for ever": 0,
    "a suspect is overdue before it is tried": 4,
    "a trial clears all rewards of its group": 2,
    "the task of a group that cannot be read is lost": 0,
    "a group that cannot be read goes on waiting": 0,
    "a reward worker drops what the learner may have chosen": 0,
    "the ledger is trimmed": 0,
    "drops are not in the ledger": 0,
}
"""The first seed that finds a mutant: a test replays it, and `make verify` searches again."""


SAMPLE = {
    "admission counts the released version only",
    "ready groups come in any order",
    "a put needs no token",
    "a repeated record is refused",
    "nothing is trimmed",
    "leases do not pass",
    "a resume forgets the records",
    "a roll-back keeps the queue",
    "a suspect is handed out with others",
    "drops are not in the ledger",
}
"""One mutant of each kind of rule, replayed by `make test`; `make verify` replays all."""


def source(name: str, script: str) -> str:
    """A script of the test build. AssertionError if the text to change is not there exactly once."""
    text = ORIGINAL(script)
    old, new = MUTANTS[name].get(script, ("", ""))
    if old:
        assert text.count(old) == 1, (
            f"{script}.lua holds {old!r} {text.count(old)} times: this mutant needs another text"
        )
        text = text.replace(old, new)
    return text


ORIGINAL = connection._source
