from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from common.captions import TEMPLATES, class_named, class_words, normalised
from common.encoder import build_encoder
from trainer.checkpoint import Checkpoint, load, save
from trainer.clap import ClapModule
from trainer.probe_set import ProbeClip, ProbeSet, probe_set
from trainer.zero_shot import PROMPTS, class_projections, clip_projections, restore_clap, zero_shot, zero_shot_text

LABELS = ("crying_baby", "sea_waves")


@pytest.fixture(scope="module")
def clips() -> ProbeSet:
    rng = np.random.default_rng(0)
    seconds = (1.0, 2.0, 1.5, 1.0, 2.5, 1.0)
    return probe_set(
        ProbeClip(
            0.1 * rng.standard_normal(int(16_000 * s)).astype(np.float32), LABELS[i % 2], held_out=i > 1, name=f"{i}"
        )
        for i, s in enumerate(seconds)
    )


def checkpoint(module: ClapModule | None) -> Checkpoint:
    state: dict[str, object] = {} if module is None else {"objective": module.state_dict()}
    return Checkpoint("run", "f" * 64, "mobile", dict(build_encoder("mobile", 3).state_dict()), state, 1, 1, 1)


def pointing(clips: ProbeSet) -> ClapModule:
    """A text tower that is wrong about everything: each class's words project onto the other class's sounds."""
    module = ClapModule("hashed", 128, seed=0)
    heard = clip_projections(build_encoder("mobile", 3), clips)
    labels = clips.labels[clips.held_out]
    targets = {name: heard[torch.from_numpy(labels != name)].mean(0) - heard.mean(0) for name in LABELS}
    optimizer = torch.optim.Adam(module.tower.parameters(), lr=3e-3)
    texts = [template.format(class_words(name)) for name in LABELS for template in TEMPLATES]
    wanted = torch.stack([targets[name] for name in LABELS for _ in TEMPLATES]).detach()
    for _ in range(60):
        optimizer.zero_grad()
        (1 - torch.cosine_similarity(module.tower(texts), wanted)).mean().backward()
        optimizer.step()
    return module


def test_no_prompt_is_a_caption_that_training_makes_of_any_class() -> None:
    for prompt, template in product(PROMPTS, TEMPLATES):
        assert normalised(prompt.format("rain")) != normalised(template.format("rain"))
    assert [class_named(prompt.format("crying baby")) for prompt in PROMPTS] == [None] * len(PROMPTS)


def test_a_clip_is_the_mean_of_its_windows_and_a_class_of_its_prompts(clips: ProbeSet) -> None:
    encoder, module = build_encoder("mobile", seed=0), ClapModule("hashed", 128, seed=0)
    with torch.no_grad():
        heard, asked = clip_projections(encoder, clips), class_projections(module.tower, list(LABELS))
        ends = [*clips.starts[1:], len(clips.log_mels)]
        rows = [
            torch.stack([encoder.project(encoder(clips.log_mels[w : w + 1].float()))[0] for w in range(start, end)])
            for start, end, held in zip(clips.starts, ends, clips.held_out)
            if held
        ]
        slow = torch.stack([row.mean(0) for row in rows])
        said = torch.stack([torch.stack([module.tower([p.format("sea waves")])[0] for p in PROMPTS]).mean(0)])
    torch.testing.assert_close(heard, slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(asked[1], (said / said.norm())[0], rtol=1e-4, atol=1e-5)


def test_accuracy_is_the_share_of_held_out_clips_nearest_to_their_own_class(clips: ProbeSet) -> None:
    encoder, module = build_encoder("mobile", seed=3), pointing(clips)
    result = zero_shot(checkpoint(module), encoder, clips)
    assert result is not None
    with torch.no_grad():
        heard, asked = clip_projections(encoder, clips), class_projections(module.tower, list(LABELS))
    right = [
        LABELS[max(range(2), key=lambda c: float(row @ asked[c]))] == label
        for row, label in zip(heard, clips.labels[clips.held_out])
    ]
    assert result.accuracy == sum(right) / 4
    assert result.accuracy <= 0.5
    assert (result.chance, result.classes, result.held_out) == (0.5, 2, 4)


def test_a_checkpoint_without_a_text_tower_cannot_be_asked(clips: ProbeSet) -> None:
    encoder = build_encoder("mobile", seed=3)
    assert zero_shot(checkpoint(None), encoder, clips) is None
    assert restore_clap(checkpoint(None), 128) is None


def test_the_tower_comes_back_from_a_checkpoint_on_the_disk(tmp_path: object, clips: ProbeSet) -> None:
    module = ClapModule("hashed", 128, seed=4)
    module.counts += torch.tensor([3, 40, 1])
    restored = restore_clap(load(save(tmp_path, checkpoint(module))), 128)  # type: ignore[arg-type]
    assert restored is not None
    assert restored.counts.tolist() == [3, 40, 1]
    assert torch.equal(restored.tower(["rain"]), module.tower(["rain"]))


def test_a_run_on_class_names_is_called_supervised_and_one_on_written_captions_is_not(clips: ProbeSet) -> None:
    encoder, shown = build_encoder("mobile", seed=3), []
    for counts in ([0, 40, 0], [40, 0, 2]):
        module = ClapModule("hashed", 128, seed=0)
        module.counts += torch.tensor(counts)
        result = zero_shot(checkpoint(module), encoder, clips)
        assert result is not None
        assert result.supervised == (counts[1] > 0)
        shown.append(zero_shot_text({**{f: getattr(result, f) for f in result.__slots__}}))
    assert "supervised" in shown[0]
    assert "supervised" not in shown[1]
    assert "2 windows without a caption" in shown[1]
