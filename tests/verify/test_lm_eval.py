"""EleutherAI's evaluation harness, unmodified, as the agent: it runs a local task against the policy endpoint."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from actors.environments.program import ProgramAgent
from cluster.types import Task
from tests.actors.agents import Scripted, merging, played
from tests.actors.test_chat import CHATML
from tests.actors.test_endpoint import check_sampled
from tests.actors.test_endpoint_tools import LONG, Reads

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ANSWERS = {"2+2?": "4", "2+3?": "5", "3+3?": "7"}
SUMS = {
    "task": "sums",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
RUN = """set -e
python -m lm_eval run --model local-chat-completions --apply_chat_template --tasks sums --include_path . \
  --model_args "base_url=$OPENAI_BASE_URL/chat/completions,model=$OPENAI_MODEL,num_concurrent=1" --output_path out
python - > "$KANABO_REWARD_FILE" <<'END'
import glob, json
print(json.load(open(glob.glob("out/*/results_*.json")[0]))["results"]["sums"]["exact_match,none"])
END
"""


@pytest.fixture
def harness() -> Path:
    """The programs of its environment, which is made if it is not there."""
    subprocess.run([str(ROOT / "deploy/environments.sh"), "lm_eval"], check=True)
    return ROOT / ".environments/lm_eval/bin"


async def test_the_harness_measures_what_the_policy_answers(tmp_path: Path, harness: Path):
    data = tmp_path / "sums.jsonl"
    rows = [("2+2?", "4"), ("2+3?", "5"), ("3+3?", "6")]
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    task = SUMS | {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tmp_path / "sums.yaml").write_text(json.dumps(task))  # JSON is YAML

    def write(prompt: str) -> str:
        return next(answer for question, answer in ANSWERS.items() if question in prompt)

    engine = Scripted(Reads(merging(CHATML)), write)
    environment = ProgramAgent(
        command=("sh", "-c", RUN),
        cwd=str(tmp_path),
        env={
            "PATH": f"{harness}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        },
    )
    rollouts = await played(engine, environment, LONG, Task.of("sums", ""))
    check_sampled(rollouts, engine)
    assert len(rollouts) == len(rows), "one conversation each"
    assert [r.reward for r in rollouts] == [pytest.approx(2 / 3, abs=1e-6)] * 3
