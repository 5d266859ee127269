# SPDX-License-Identifier: Apache-2.0
"""What the model card of the quickstart says."""

from collections.abc import Mapping

from svit_hf.hub.model_card import CardText, Evaluation


DATA_NAME = "Optical Recognition of Handwritten Digits"


def quickstart_card(
    location: str,
    command: str,
    settings: Mapping[str, object],
    num_trained: int,
    num_held_out: int,
    metrics: Mapping[str, float],
) -> CardText:
    """Return the text of the card.

    Args:
        location: The folder of the model.
        command: The command line that trained it.
        settings: Settings of the training run, by name.
        num_trained: Images that it was trained on.
        num_held_out: Images that it was evaluated on.
        metrics: What came out, by name.
    """
    return CardText(
        name="svit-digits",
        location=location,
        summary=(
            "A tiny SViT that reads single handwritten digits, trained from scratch on a CPU. It shows that training, "
            "evaluation, saving and loading work; it says nothing about how good SViT is on photographs."
        ),
        data=(
            f"{num_trained} of the 1797 digits that come with scikit-learn (`sklearn.datasets.load_digits`): real "
            f"handwriting, 8x8 grey pixels, the test part of *{DATA_NAME}* (E. Alpaydin, C. Kaynak, UCI, 1998). The "
            f"other {num_held_out} were held out: a random fifth of each class, the same for every run. The image "
            "processor enlarges the digits to 32x32 pixels and repeats the grey channel."
        ),
        command=command,
        settings=settings,
        evaluations=[
            Evaluation(
                dataset_name=DATA_NAME,
                dataset_id="sklearn/load_digits",
                split=f"held out by svit-hf, {num_held_out} of 1797 images",
                num_images=num_held_out,
                metrics=metrics,
            )
        ],
        limits=(
            "- Only for single digits that are cut out, centred and light on dark, as in these data. There is no "
            "class for anything else.\n"
            "- The data do not name the writers, so that one writer's digits can be on both sides of the split: the "
            "accuracy on unknown hands is likely lower.\n"
            f"- {num_held_out} images are few: one more or less that is right moves the accuracy by "
            f"{100 / num_held_out:.2f} points."
        ),
        provenance=(
            "The weights were trained from random ones by the command above; they contain none of the weights that "
            "the paper's authors published. They are offered under the Apache-2.0 licence, which is that of svit-hf. "
            "The digits come from the UCI Machine Learning Repository through scikit-learn, whose copy states no "
            "licence of its own for them; look it up there before you pass the digits on."
        ),
        tags=["digits"],
        has_code=False,
    )
