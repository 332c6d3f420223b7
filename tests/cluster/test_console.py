"""The console: what it says of groups in every state, at 10,000 of them, and of the run."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer, decoders, models

from cluster import config
from cluster.buffer import Limits, ReplicaCounts
from cluster.errors import ConfigError
from cluster.observability.console import server
from cluster.observability.console.detail import Pieces
from cluster.observability.console.groups import GroupIndex, Query
from cluster.observability.console.source import Alive, Source
from cluster.storage import group_archive
from cluster.types import ABSTAINED, Scores
from tests.cluster.pipeline import Pipeline, group_of
from tests.cluster.runs import VERDICT, client, group, keep, write_run

LIMITS = Limits(groups_per_step=2, max_staleness=1, blocking=("judge",))


@pytest.fixture
def pipeline(buffer):
    return Pipeline(buffer, LIMITS)


@pytest.fixture
def wishes(redis_url):
    wishes = ReplicaCounts(redis_url, f"console-{uuid4().hex[:8]}")
    yield wishes
    wishes.close()


@pytest.fixture
def page(tmp_path, pipeline, wishes):
    """A run under way, with a line for its driver's."""
    (tmp_path / "model").mkdir()
    standing = {"waiting": "Nothing", "actors": [], "failures": 0}
    alive = Alive(pipeline.buffer, lambda: standing, tmp_path / "model", wishes)
    return TestClient(server.app(Source(write_run(tmp_path / "run"), alive)))


@pytest.fixture(autouse=True)
def every_look_is_new(monkeypatch):
    monkeypatch.setattr("cluster.observability.console.groups.REFRESH_S", 0.0)
    monkeypatch.setattr("cluster.observability.console.source.FRESH_S", 0.0)
    monkeypatch.setattr("cluster.observability.console.source.Pieces.of", lambda self, tokens: [str(t) for t in tokens])


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_is_seen_in_every_state_of_its_life(page, pipeline):
    def state(id: str) -> tuple[str, int | None]:
        [line] = [g for g in page.get("/api/groups").json()["groups"] if g["id"] == id]
        return line["state"], line["step"]

    first, second = pipeline.claim(), pipeline.claim()
    assert state(first.id) == ("leased", None)
    assert page.get("/api/workers").json()["leased"] == {"worker": 2}
    assert page.get(f"/api/groups/{first.id}").status_code == 404, "there is nothing to see of it yet"
    pipeline.buffer.put(group_of(first))
    assert state(first.id) == ("pending", None)
    pipeline.buffer.score(first.id, {"judge": VERDICT})
    assert state(first.id) == ("ready", None)
    pipeline.finish(second)
    pipeline.assemble()
    assert state(first.id) == ("assembled", 1)
    pipeline.release()
    assert state(first.id) == ("trained", 1)

    shown = page.get(f"/api/groups/{first.id}").json()
    assert (shown["step"], shown["staleness"], shown["version"]) == (1, 0, 0)
    assert [r["reward"] for r in shown["rollouts"]] == [1.0, 0.0]
    assert shown["rollouts"][0]["advantage"] == 1.0
    pipeline.buffer.trim(pipeline.snapshot())
    assert page.get(f"/api/groups/{first.id}").status_code == 404
    assert page.get("/api/groups").json()["groups"] == []


def test_rewards_are_of_the_history_that_survived(page, pipeline):
    def rewards() -> dict[str, float | None]:
        return {g["id"]: g["reward"] for g in page.get("/api/groups?step=1").json()["groups"]}

    abandoned = pipeline.iteration()
    assert rewards() == dict.fromkeys(abandoned.groups, 0.5)
    pipeline.start(None, rollback=True)
    pipeline.step = 0
    again = pipeline.iteration()
    assert not set(again.groups) & set(abandoned.groups)
    assert rewards() == dict.fromkeys(again.groups, 0.5)


def test_what_is_kept_outlives_the_buffer(page, tmp_path, pipeline):
    claim = pipeline.claim()
    pipeline.finish(claim)
    keep(tmp_path / "run", 1, [group_of(claim)], (1.0, np.nan))
    answer = page.get("/api/groups").json()
    assert answer["states"] == {"trained": 1}, "in Redis and on disk, it is one group"
    [line] = answer["groups"]
    assert (line["reward"], line["rewards"], line["unknown"]) == (1.0, [1.0, None], 1)
    assert "offset" not in line


def test_an_unknown_score_has_a_state_and_no_value(tmp_path):
    keep(write_run(tmp_path), 3, [group(1)], (1.0, np.nan))
    shown = client(tmp_path).get("/api/groups/policy/1/1").json()
    [judged] = shown["scores"]
    known, failed = judged["rollouts"]
    assert judged["version"] == "rubric-3"
    assert (known["value"], known["state"], known["judge"], known["model"]) == (1.0, "scored", "tutor", "judge-7b")
    assert (known["latency_s"], known["note"]) == (1.5, "Well done.")
    assert (failed["value"], failed["state"], failed["note"]) == (None, "failed", "no answer")
    assert [r["reward"] for r in shown["rollouts"]] == [1.0, None]
    assert [r["advantage"] for r in shown["rollouts"]] == [0.5, None], "the second is left out of the step"
    tokens = shown["rollouts"][0]["tokens"]
    assert tokens["chosen"] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert tokens["logprob"][2:4] == [tokens["advantage"][2], 0.0] == [None, 0.0]
    assert tokens["difference"][2:4] == [None, 0.25], "what the learner gave it less what the engine did"
    assert shown["rollouts"][0]["versions"] == ["1.0"]
    keep(tmp_path, 4, [group(2)], (1.0, 0.0), learners=())
    assert client(tmp_path).get("/api/groups/policy/1/2").json()["rollouts"][0]["tokens"]["difference"] is None


def test_one_provenance_stands_for_all_rollouts(tmp_path):
    scores = replace(Scores.abstained(2, "no majority"), version="2")
    assert (scores.state == ABSTAINED).all()
    keep(write_run(tmp_path), 1, [group(1)], (1.0, 0.0), scores)
    [judged] = client(tmp_path).get("/api/groups/policy/1/1").json()["scores"]
    assert [(r["state"], r["value"], r["note"]) for r in judged["rollouts"]] == [("abstained", None, "no majority")] * 2


def test_ten_thousand_groups_are_listed_at_once(tmp_path):
    groups = [group(i, f"what is {i} + 1?") for i in range(10_000)]
    for step in range(100):
        keep(write_run(tmp_path), step + 1, groups[step::100], (step / 100, step / 100 + 0.01))
    index = GroupIndex(tmp_path / "groups", None, "policy")
    index.find(Query())
    queries = [
        Query(), Query(text="what is 99"), Query(min_reward=0.5, max_reward=0.6), Query(step=7), Query(sort="spread"),
        Query(sort="reward", ascending=True), Query(state="trained", page=200),
    ]  # fmt: skip
    spent, totals = [], []
    for query in queries:
        begun = time.thread_time()
        totals.append(index.find(query)["total"])
        spent.append(time.thread_time() - begun)
    assert max(spent) < 0.3, spent
    assert totals == [10_000, sum(str(i).startswith("99") for i in range(10_000)), 1_000, 100, 10_000, 10_000, 10_000]

    opened = index.get("policy/1/777")
    assert opened is not None
    assert opened.group.group.task.prompt == "what is 777 + 1?"

    def ids(query: Query) -> list[int]:
        return [int(g["id"].rsplit("/", 1)[1]) for g in index.find(query)["groups"]]

    assert ids(Query()) == list(range(9_999, 9_949, -1))
    assert ids(Query(page=200, ascending=True)) == list(range(9_950, 10_000))
    assert {g["step"] for g in index.find(Query(sort="reward"))["groups"]} == {100}
    assert {g["step"] for g in index.find(Query(sort="reward", ascending=True))["groups"]} == {1}


def test_unknown_rewards_come_last_in_either_order(tmp_path):
    write_run(tmp_path)
    for step, reward in enumerate((0.2, np.nan, 0.7), 1):
        keep(tmp_path, step, [group(step)], (reward, reward))
    for ascending in (True, False):
        answer = client(tmp_path).get("/api/groups", params={"sort": "reward", "ascending": ascending}).json()
        steps = [g["step"] for g in answer["groups"]]
        assert steps == ([1, 3, 2] if ascending else [3, 1, 2])
        assert answer["groups"][-1]["reward"] is None
    for bound in ("max_reward=1", "min_reward=0"):
        assert client(tmp_path).get(f"/api/groups?{bound}").json()["total"] == 2, "unknown is within no bound"


def test_the_keeper_stays_within_its_bound_and_forgets_dead_histories(tmp_path):
    for step in range(1, 6):
        keep(tmp_path, step, [group(10 * step + i) for i in range(4)], (1.0, 0.0), limit=10)
    assert [group_archive.step_of(p) for p in group_archive.files(tmp_path / "groups")] == [4, 5]
    index = GroupIndex(tmp_path / "groups", None, "policy")
    assert index.find(Query())["total"] == 8
    keep(tmp_path, 4, [group(99)], (1.0, 0.0), done=3)
    assert [g["id"] for g in index.find(Query())["groups"]] == ["policy/1/99"], "the page follows"
    found = index.get("policy/1/99")
    assert found is not None
    assert found.group.group.task.id == "sums/99"


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_pieces_join_to_the_text_whatever_its_alphabet(tmp_path, monkeypatch):
    monkeypatch.undo()
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a naïve 鬼に金棒 🙂 end"
    ids = np.array(tokenizer.encode(text).ids)
    pieces = Pieces(tmp_path).of(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    half = Pieces(tmp_path).of(ids[:4])  # a, space, n, a and then half of ï
    assert half == list(text[:4])
    assert Pieces(None).of(np.array([7])) == ["⟨7⟩"]


# ── status, metrics, recipe ─────────────────────────────────────────────────────────────────────────────────


def test_status_says_what_the_oldest_group_waits_for(page, pipeline):
    claim = pipeline.claim()
    pipeline.buffer.put(group_of(claim))
    status = page.get("/api/status").json()
    assert status["live"]
    assert status["buffer"]["groups"]["pending"] == 1
    assert status["buffer"]["oldest"]["waits_for"] == "scores: judge"
    assert status["standing"]["waiting"] == "Nothing"


def learner_says(page) -> tuple[str, str]:
    """The run's sentence, and what the learner does."""
    standing = page.get("/api/status").json()["standing"]
    return standing["waiting"], next(a["says"] for a in standing["actors"] if a["name"] == "learner-0")


@pytest.mark.parametrize(
    "last_words", ["waits for the groups of step 1 for 4 s", "trains step 1 for 1 s", "publishes version 7 for 2 s",
                   "saves step 3 for 1 s", "waits for the groups of step 2 for 0 s", "trains step 22 for 3 s"],
)  # fmt: skip
def test_what_the_learner_does_agrees_with_where_the_groups_are(tmp_path, pipeline, wishes, last_words):
    """The learner was asked some seconds ago; the buffer is asked now."""
    (tmp_path / "model").mkdir()
    actors = [{"name": "learner-0", "says": last_words, "answered_s": 4.0}]
    standing = {"waiting": "The learner took step 9 and waits for groups", "actors": actors, "failures": 0}
    alive = Alive(pipeline.buffer, lambda: standing, tmp_path / "model", wishes)
    run = write_run(tmp_path / "run")
    two = config.parse({"learner": {"groups_per_step": 2, "steps": 2}})
    (run / "config.toml").write_text(config.dump(two))
    page = TestClient(server.app(Source(run, alive)))
    for step in (1, 2):
        said, does = learner_says(page)
        assert said.startswith(f"The learner waits for the groups of step {step}: 0 of 2 are ready")
        assert f"step {step}" in does
        for claim in (pipeline.claim(), pipeline.claim()):
            pipeline.finish(claim)
        assert learner_says(page) == (
            f"Step {step} begins: 2 of 2 groups are ready",
            f"takes the groups of step {step}",
        )
        pipeline.assemble()
        assert learner_says(page) == (f"Step {step} is being trained, on 2 groups", f"trains step {step}")
        pipeline.release()
    said, does = learner_says(page)
    assert said.startswith("All 2 steps are trained")
    assert does == "has taken its last step"


def test_before_the_learner_is_up_the_run_says_what_it_waits_for(page):
    assert page.get("/api/status").json()["standing"]["waiting"] == "Nothing"


def test_a_finished_run_needs_no_redis(tmp_path):
    status = client(write_run(tmp_path)).get("/api/status").json()
    assert (status["live"], status["buffer"], status["standing"]) == (False, None, None)


def test_metrics_come_in_parts_and_begin_anew_with_a_rewritten_file(tmp_path):
    context, path = client(write_run(tmp_path, {"step": 1, "reward/mean": None})), tmp_path / "metrics.jsonl"
    first = context.get("/api/metrics").json()
    assert (first["rows"], first["reset"]) == ([{"step": 1, "reward/mean": None}], True)
    assert first["meanings"].keys() == {"reward/mean"}
    assert first["meanings"]["reward/mean"]["unit"] == "reward"
    with path.open("a") as file:
        file.write('{"step": 2}\n{"step": 3, "rew')
    second = context.get("/api/metrics", params={"after": first["next"]}).json()
    assert (second["rows"], second["reset"]) == ([{"step": 2}], False)
    with path.open("a") as file:
        file.write('ard/mean": 0.5}\n')
    third = context.get("/api/metrics", params={"after": second["next"]}).json()
    assert third["rows"] == [{"step": 3, "reward/mean": 0.5}]
    (tmp_path / "new").write_text('{"step": 1, "reward/mean": 0.25}\n' * 9)
    (tmp_path / "new").replace(path)
    fourth = context.get("/api/metrics", params={"after": third["next"]}).json()
    assert (len(fourth["rows"]), fourth["reset"]) == (9, True)


def test_damaged_files_of_a_run_are_passed_over(tmp_path):
    run = write_run(tmp_path, {"step": 1})
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\x00\n[1]\n{"step": 2\n\n' + b"[" * 9999 + b'\n{"step": 3}\n')
    (run / "summary.json").write_bytes(b"{")
    context = client(run)
    assert context.get("/api/metrics").json()["rows"] == [{"step": 1}, {"step": 3}]
    assert context.get("/api/status").json()["summary"] is None


def test_the_recipe_shows_what_was_chosen_and_no_password(tmp_path):
    write_run(tmp_path)
    chosen = config.parse(
        {
            "learner": {"schedule": {"lr": 0.5}},
            "rewards": [{"use": "exact", "weight": 2.0}],
            "buffer": {"url": "redis://:secret@host:1/0"},
            "judges": {"critic": {"kind": "vllm", "model": "m"}},
            "monitors": [{"use": "collapse", "options": {"window": 9}}],
        }
    )
    (tmp_path / "config.toml").write_text(config.dump(chosen))
    answer = client(tmp_path).get("/api/recipe")
    assert "secret" not in answer.text
    assert set(answer.json()["changed"]) == {
        "learner.schedule.lr", "rewards[0].use", "rewards[0].weight", "buffer.url",
        "judges.critic.kind", "judges.critic.model", "monitors[0].use", "monitors[0].options",
    }  # fmt: skip


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        Source(tmp_path)


# ── what it changes, and what monitors say ──────────────────────────────────────────────────────────────────


def test_more_workers_are_wished_for_by_who_may(page, wishes):
    wishes.staff({"rollout": 2, "reward": 1})
    ours = {"X-Kanabo": "console"}
    assert page.post("/api/scale", json={"role": "rollout", "count": 3}).status_code == 403, "a foreign page's form"
    assert wishes.wished() == {}
    assert page.post("/api/scale", json={"role": "rollout", "count": 3}, headers=ours).json() == {"rollout": 3}
    assert page.get("/api/workers").json()["staff"] == {
        "rollout": {"up": 2, "wished": 3},
        "reward": {"up": 1, "wished": 1},
    }
    for wrong in ({"role": "rollout", "count": 0}, {"role": "queen", "count": 1}):
        assert page.post("/api/scale", json=wrong, headers=ours).status_code == 400
    assert wishes.wished() == {"rollout": 3}


def test_nobody_joins_a_run_that_has_ended(tmp_path):
    context = client(write_run(tmp_path))
    answer = context.post("/api/scale", json={"role": "rollout", "count": 3}, headers={"X-Kanabo": "console"})
    assert (answer.status_code, "has ended" in answer.json()["error"]) == (400, True)
    assert context.get("/api/workers").json()["staff"] == {}


def test_alarms_are_shown_with_what_gave_them_away(tmp_path):
    run = write_run(tmp_path)
    context = client(run)
    assert context.get("/api/alarms").json() == {"alarms": [], "monitors": []}
    said = {"monitor": "collapse", "step": 7, "metric": "eval/accuracy", "message": "it fell.", "good": 4}
    by_version_01 = {"signal" if name == "metric" else name: value for name, value in said.items()}
    (run / "alarms.jsonl").write_text(json.dumps(said) + "\n" + json.dumps(by_version_01) + "\n" + '{"torn')
    assert context.get("/api/alarms").json()["alarms"] == [said, said]


# ── addresses ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["/", "/index.html"])
@pytest.mark.parametrize("name", server.VIEWS)
def test_every_known_view_is_the_page(page, address, name):
    answer = page.get(address, params={"view": name})
    assert answer.status_code == 200
    assert 'id="view"' in answer.text


def test_the_page_has_the_views_that_the_server_knows():
    script = (Path(server.__file__).parent / "static" / "app.js").read_text("utf-8")
    listed = script.split("const VIEWS = {")[1].split("};")[0]
    assert tuple(re.findall(r"^  (\w+):", listed, re.MULTILINE)) == server.VIEWS


@pytest.mark.parametrize("address", ["/?view=nonsense", "/index.html?view=Pipeline", "/nonsense", "/a/b?view=pipeline"])
def test_an_unknown_view_or_path_is_a_page_with_the_known_views(page, address):
    answer = page.get(address)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert all(f'href="/?view={name}"' in answer.text for name in server.VIEWS)


def test_an_unknown_name_is_shown_as_text(page):
    answer = page.get("/", params={"view": "<script>alert(1)</script>"})
    assert answer.status_code == 404
    assert "<script>" not in answer.text
    assert "&lt;script&gt;" in answer.text


def test_an_unknown_address_of_the_interface_is_an_error_in_json(page):
    answer = page.get("/api/nonsense")
    assert answer.status_code == 404
    assert answer.json() == {"error": "There is nothing at '/api/nonsense'."}
