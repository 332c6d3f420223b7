"""The buffer: claims, groups, scores and batch records of a run, durable in Redis. Every other part meets here.

Every transition of the pipeline is one Lua script (`scripts/`), atomic and safe to repeat. `connection.py` runs the
scripts and waits on their bells; `client.py` gives them names and types; `audit.py` reads what a run has done.
`upgrade.lua` renames what version 0.1 stored.

    claim ──► leased ──put──► pending ──score──► ready ──record──► assembled ──release──► trained ──trim──► (line)
                │                │                 │                   │
                └── lease_expired, worker_died, late, filtered, dead_epoch, rolled_back … ──► dropped: final.
                                                               Its task may be first in the queue again.

Keys. All begin `kanabo:{RUN}:`, so a Redis cluster keeps a run in one slot.

    limits                   hash    what `configure` was told
    policies                 set     names of those that claim; members have publications alone
    server                   string  run id of the Redis process: has it restarted?
    group:ID                 hash    state, task, version, seq, token, worker, data, overdue, era; s:REWARD the scores
                                     it carries, carried:REWARD their version, new:REWARD of an era not yet complete,
                                     v:REWARD:VERSION what has answered (with a zero byte between); scorer the reward
                                     worker that has it in hand; suspect the one that died with it in hand, tried the
                                     rewards that were asked alone since, trial the one that is, condemned those that
                                     a worker died over again
    era                      string  number of the newest era: the rewards' versions that are current together
    era:N, last_eras         hash    reward → version; reward and version → the last era it was current in
    unscored                 zset    id → when it is due to be handed to a reward worker
    suspects, excused        set     ids of groups that a reward worker had in hand when it died; reward workers that
                                     ended themselves
    asked                    hash    worker, id and rewards (a line each) of what reward workers ask now → 1
    answer:REQUEST           string  what a call was answered, for ten minutes: a repeat gets the same
    dropped, dropped:ID      list, hash  the last groups that the buffer itself dropped, oldest first, as they were
    judged:REQUEST           list    raw answers of judges; judged_order their lists' names, oldest answer first
    events, bell:unscored    stream
    unreadable               set     ids of groups that cannot be read
    quarantine               list    (id, why, bytes) of the newest 100 of those
    wished, staffed          hash    role → how many workers a user wants, and how many are up
    moving                   hash    worker that is still to join or to leave → what it waits for, in words
    policy:NAME:
      state                  hash    epoch, version, next_step, frontier, seq, trimmed, published_step, left_at, wanted
      released, saved        hash    policy → the version that it has released, the step that it has saved
      counters               hash    claimed, refused_…, overdue, unreadable, condemned, …
      open, ready            zset    live groups (leased or pending; ready), ordered by version, then seq
      leases, deadlines      zset    id → when it passes, in Redis' own milliseconds
      requeued               list    tasks to claim before the frontier
      deaths                 hash    task → rollout workers that ended inside a step of its environment
      assembled, records     zset    id → step; steps that have a record
      record:STEP            string  the batch record
      ledger                 hash    id → "task epoch version outcome"; the newest 20,000 final lines, all others
      settled                list    ids of those final lines, oldest first
      past, past_steps       hash    sums of older lines: dropped:REASON, trained_twice, max_staleness; step → groups
      past_tasks             string  a bit for each task that an older line says was trained
      published              string  the last publication of this epoch
      bell:capacity, bell:ready, bell:version, bell:assembled, bell:saved      streams of one entry
"""

from cluster.buffer.audit import LedgerLine
from cluster.buffer.client import Buffer, Limits, Question, Suspicion
from cluster.buffer.policy_barrier import Members
from cluster.buffer.scaling import ReplicaCounts

__all__ = ["Buffer", "LedgerLine", "Limits", "Members", "Question", "ReplicaCounts", "Suspicion"]
