# SPDX-License-Identifier: Apache-2.0
"""The parts that measure whole classifiers: SViT beside its peers, and how cost grows with the size of the image."""

from collections.abc import Sequence

from svit_hf.benchmark.contestants import Contestant, Session, classifier_contestants
from svit_hf.benchmark.forms import PEER_FORMS, PEER_REFERENCE, SVIT_FORMS, Form, Situation
from svit_hf.benchmark.networks import Network, SViTNetwork
from svit_hf.benchmark.results import Case


def measure_classifiers(
    network: Network,
    peers: Sequence[Network],
    situation: Situation,
    session: Session,
    *,
    batch_size: int,
    image_size: int,
) -> Case:
    """Measure SViT in all its forms, and its peers, in one interleaved run.

    Raises:
        GateError: If the results of a contestant are wrong.
    """
    entries = [(network, SVIT_FORMS), *((peer, PEER_FORMS) for peer in peers)]
    return _measure(entries, situation, session, part="model", batch_size=batch_size, image_size=image_size)


def measure_growth(
    network: Network,
    with_larger_cells: Sequence[Network],
    peers: Sequence[Network],
    situation: Situation,
    session: Session,
    *,
    batch_size: int,
    image_sizes: Sequence[int],
) -> list[Case]:
    """Measure SViT, SViT with larger cells, and its peers at growing image sizes.

    The batch shrinks as images grow, so that a step has about the same number of pixels: what is left is how the cost
    of a pixel depends on the size of its image.

    Args:
        network: SViT with its own cells.
        with_larger_cells: The same with other ones, in the fastest form alone.
        peers: Others.
        situation: What is measured, and where.
        session: What all cases share.
        batch_size: Images per step at the smallest size.
        image_sizes: Edges in pixels.

    Returns:
        A case per size, in growing order.

    Raises:
        GateError: If the results of a contestant are wrong.
    """
    forms = [form for form in SVIT_FORMS if form.shows_growth]
    own = [form for form in forms if not form.is_official and form.applies(session.dtypes[0], situation)]
    entries: list[tuple[Network, Sequence[Form]]] = [(network, forms)]
    entries += [(other, own[-1:]) for other in with_larger_cells]
    entries += [(peer, [PEER_REFERENCE]) for peer in peers]
    sizes = sorted(image_sizes)
    return [
        _measure(
            entries,
            situation,
            session,
            part="growth",
            batch_size=max(round(batch_size * (sizes[0] / size) ** 2), 1),
            image_size=size,
        )
        for size in sizes
    ]


def _measure(
    entries: Sequence[tuple[Network, Sequence[Form]]],
    situation: Situation,
    session: Session,
    *,
    part: str,
    batch_size: int,
    image_size: int,
) -> Case:
    title = f"{situation.task}, {entries[0][0].name} and others: batch {batch_size}, {image_size} pixels"
    session.say(title)
    contestants: list[Contestant] = []
    for network, forms in entries:
        with session.leaving_out(
            f"{network.name}, {image_size} pixels", is_foreign=not isinstance(network, SViTNetwork)
        ):
            contestants += classifier_contestants(
                network, forms, situation, session, batch_size=batch_size, image_size=image_size
            )
    return session.measure(
        contestants, part=part, title=title, task=situation.task, batch_size=batch_size, image_size=image_size
    )
