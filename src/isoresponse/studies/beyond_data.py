"""Sounds, tables and texts that can be attacked: data, small networks, and units in which a person knows their sizes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from isoresponse.models.training import fit
from isoresponse.neuron import Box
from isoresponse.studies.materials import require_folder

RECORDINGS = "fsdd_0_24.npz"
RATE, SAMPLES = 4000, 2048  # sounds: samples per second, and their number: half a second
KEYS = ((697, 770, 852, 941), (1209, 1336, 1477, 1633))  # the tones of telephone keys (ITU-T Q.23), in Hz
PAD = ((3, 1), *((row, column) for row in range(3) for column in range(3)))  # row and column of the keys 0 to 9
WORDS, WIDTH = 12, 16  # texts: words in a passage, numbers per word
BLOCK = 30  # words in a row that are kept for training or for testing, every fourth block for testing
COMMON = 2  # times that a word must occur to be known

Size = Callable[[Tensor, Tensor], Tensor]  # of changes (case, *shape) of inputs (case, *shape): (case,)


@dataclass(frozen=True, eq=False)
class Domain:
    """Labelled inputs of one kind, an untrained network, and how large a change is.

    `size` measures changes in `unit`; `small` is what counts as small there, and `smaller` says so in words. `words` names the
    elements of an input where they have names.
    """

    name: str
    source: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    net: nn.Module
    box: Box
    size: Size
    unit: str
    small: float
    smaller: str
    epochs: int
    names: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Domain:
        """The same on another device."""
        train, test = ((x.to(device), labels.to(device)) for x, labels in (self.train, self.test))
        return replace(self, train=train, test=test, net=self.net.to(device))


def trained(domain: Domain, *, seed: int = 0, on_epoch: Callable[[int, int], None] | None = None) -> nn.Module:
    """The domain's network, trained where it has epochs to train for, in float64 and eval mode."""
    if domain.epochs:
        fit(domain.net, *domain.train, epochs=domain.epochs, generator=Generator().manual_seed(seed), on_epoch=on_epoch)
    return domain.net.double().eval()


# --- sounds -----------------------------------------------------------------------------------------------


def sounds(data: Path | None, *, count: int, epochs: int, seed: int = 0) -> Domain:
    """Spoken digits from the folder `fsdd` of `data`; without one, the tones of telephone keys in noise.

    Half a second at 4 kHz, in [-1, 1]. Changes are measured in dB relative to the sound: 0 is as loud as it. Raises
    FileNotFoundError for a folder that is not there, or has no fsdd.
    """
    if data is not None:
        require_folder(data)
        if not (data / "fsdd").is_dir():
            raise FileNotFoundError(
                f"{data} has no folder fsdd; give --data a folder with one, or leave it out for tones made here."
            )
        train, test = _recordings(data / "fsdd" / RECORDINGS)
        source = "spoken digits (FSDD), the middle half second at 4 kHz"
    else:
        generator = Generator().manual_seed(seed)
        train, test = (tones(n, generator=generator) for n in (count, count // 3))
        source = "tones of telephone keys in noise, made here"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv1d(1, 16, 32, 4, 14), nn.GELU(), nn.Conv1d(16, 32, 8, 4, 2), nn.GELU(), nn.Conv1d(32, 48, 8, 4, 2), nn.GELU(),
            nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(192, 10),
        )  # fmt: skip
    return Domain(
        "sounds", source, train, test, net, Box(-1.0, 1.0), decibels, "dB of the sound", -20.0,
        "a tenth of the sound's amplitude", epochs,
    )  # fmt: skip


def decibels(change: Tensor, x: Tensor) -> Tensor:
    """Level (case,) of a change relative to the sound it changes, in dB: 20 log10 of the ratio of their r.m.s. values."""
    return 20 * torch.log10(change.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1))


def tones(count: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Sounds (case, 1, SAMPLES) of the telephone keys 0 to 9, two sines of random level and phase in noise; and the keys."""
    labels = torch.randint(10, (count,), generator=generator)
    time = torch.arange(SAMPLES) / RATE
    sound = 0.1 * torch.randn(count, SAMPLES, generator=generator)
    for part, frequencies in enumerate(KEYS):
        pitch = torch.tensor([frequencies[key[part]] for key in PAD])[labels]
        level, phase = (torch.rand(count, 1, generator=generator) for _ in range(2))
        sound += (0.05 + 0.15 * level) * torch.sin(2 * torch.pi * (pitch[:, None] * time + phase))
    return sound.clamp(-1, 1)[:, None], labels


def _recordings(path: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Recordings as the file has them: takes 0 to 4 to test, the others to train."""
    try:
        with np.load(path) as z:
            wave, offset, label, take = (z[k] for k in ("wave", "offset", "label", "take"))
    except (OSError, KeyError, ValueError) as error:
        raise FileNotFoundError(
            f"{path} is not a file with the arrays wave, offset, label and take ({error}); leave --data out for made tones."
        ) from None
    cut = np.zeros((len(label), 1, SAMPLES), dtype=np.float32)
    for i, (first, last) in enumerate(pairwise(offset)):
        sound = wave[first:last].astype(np.float32) / 32768
        sound = sound[: len(sound) // 2 * 2].reshape(-1, 2).mean(1)  # 8 to 4 kHz
        skipped = max(0, (len(sound) - SAMPLES) // 2)
        sound = sound[skipped : skipped + SAMPLES]
        first = (SAMPLES - len(sound)) // 2
        cut[i, 0, first : first + len(sound)] = sound / max(float(np.abs(sound).max()), 1e-6) * 0.5
    x, labels, test = torch.from_numpy(cut), torch.from_numpy(label.astype(np.int64)), torch.from_numpy(take < 5)
    order = torch.randperm(len(x), generator=Generator().manual_seed(0))
    x, labels, test = x[order], labels[order], test[order]
    return (x[~test], labels[~test]), (x[test], labels[test])


# --- tables -----------------------------------------------------------------------------------------------


def table(*, epochs: int, seed: int = 0) -> Domain:
    """Breast cancer (Wolberg et al. 1995), 30 measured quantities of 569 tumours, in standard deviations; no bounds."""
    from sklearn.datasets import load_breast_cancer  # heavy, and only this needs it

    bunch = load_breast_cancer()
    x, labels = torch.as_tensor(bunch.data), torch.as_tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=Generator().manual_seed(0))
    x, labels = x[order], labels[order]
    cut = 2 * len(x) // 3
    x = ((x - x[:cut].mean(0)) / x[:cut].std(0)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 2))
    return Domain(
        "table", "breast cancer (scikit-learn)", (x[:cut], labels[:cut]), (x[cut:], labels[cut:]), net, Box(), deviations,
        "standard deviations, r.m.s.", 0.5, "half a standard deviation of every quantity", epochs, tuple(bunch.feature_names),
    )  # fmt: skip


def deviations(change: Tensor, x: Tensor) -> Tensor:
    """Root-mean-square change (case,) of an element, in the inputs' own units."""
    return change.flatten(1).square().mean(1).sqrt()


# --- texts ------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Scores of passages (case, WORDS, WIDTH): a convolution over three words, the mean over places, a read-out."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.look = nn.Conv1d(WIDTH, 32, 3, padding=1)
        self.say = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (case, classes)."""
        return self.say(nn.functional.gelu(self.look(x.transpose(1, 2))).mean(2))


def texts(*, epochs: int, passages: int, seed: int = 0) -> Domain:
    """Which of scikit-learn's data sets a passage describes, asked in the space of word vectors that were learnt with it.

    An input is a passage of word vectors (WORDS, WIDTH). Changes are measured per word, in distances between a word and the
    word that is nearest to it.
    """
    generator = Generator().manual_seed(seed)
    documents = _descriptions()
    counted = Counter(w for document in documents for w in document)
    known = sorted(w for w, times in counted.items() if times >= COMMON)
    index = {w: i + 1 for i, w in enumerate(known)}
    parts = []
    for testing in (False, True):
        rows, labels = [], []
        for label, document in enumerate(documents):
            numbers = [index.get(w, 0) for w in document]
            blocks = [numbers[i : i + BLOCK] for i in range(0, len(numbers) - WORDS, BLOCK)]
            mine = [b for i, b in enumerate(blocks) if (i % 4 == 3) == testing and len(b) >= WORDS]
            number = (passages // 3 if testing else passages) // len(documents)
            for k in range(number if mine else 0):
                block = mine[k % len(mine)]
                first = int(torch.randint(len(block) - WORDS + 1, (1,), generator=generator))
                rows.append(block[first : first + WORDS])
                labels.append(label)
        order = torch.randperm(len(rows), generator=generator)
        parts.append((torch.tensor(rows)[order], torch.tensor(labels)[order]))
    return _embedded(parts[0], parts[1], len(known) + 1, len(documents), epochs, seed, ("", *known))


def _embedded(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], words: int, classes: int, epochs: int, seed: int,
    names: Sequence[str],
) -> Domain:  # fmt: skip
    """The passages as vectors: those that a model learns together with its reader, which then starts anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vectors, reader, net = nn.Embedding(words, WIDTH), Reader(classes), Reader(classes)
    fit(nn.Sequential(vectors, reader), *train, epochs=epochs, generator=Generator().manual_seed(seed))
    with torch.no_grad():
        table = vectors.weight.detach()
        apart = torch.cdist(table, table).fill_diagonal_(torch.inf).amin(1)
        step = float(apart.median())
        made = [(vectors(x), y) for x, y in (train, test)]
    net.load_state_dict(reader.state_dict())

    def size(change: Tensor, x: Tensor) -> Tensor:
        return change.flatten(2).norm(dim=2).square().mean(1).sqrt() / step

    return Domain(
        "text", f"descriptions of {classes} data sets (scikit-learn), {words - 1} words", made[0], made[1], net, Box(), size,
        "distances to the nearest word, r.m.s. over words", 0.5, "halfway from a word to its nearest word", epochs, tuple(names),
    )  # fmt: skip


def _descriptions() -> list[list[str]]:
    """The words of the descriptions that come with scikit-learn's data sets, in lower case."""
    from sklearn import datasets  # heavy, and only this needs it

    makers = (
        datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_digits, datasets.load_diabetes,
        datasets.load_linnerud,
    )  # fmt: skip
    return [re.findall(r"[a-z]+", make().DESCR.lower()) for make in makers]
