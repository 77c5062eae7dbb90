"""Shuffled frames."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_care.data.shuffle import permute_frames, shuffle_videos


@given(num_frames=st.integers(2, 40), identity=st.text(max_size=20))
def test_an_order_holds_every_frame_once_and_is_never_the_identity(num_frames, identity):
    order = permute_frames(num_frames, identity)
    assert sorted(order) == list(range(num_frames)) and order != list(range(num_frames))
    assert order == permute_frames(num_frames, identity)


def test_two_frames_have_one_other_order():
    assert {tuple(permute_frames(2, str(i))) for i in range(20)} == {(1, 0)}


def test_an_order_is_the_same_on_every_machine_and_in_every_version():
    # for i in 0 1 2 3; do printf "0/demo/4/9/0/0/$i" | b2sum -l 128; done gives 326c…, 7db9…, da15…, d883….
    assert permute_frames(4, "0/demo/4/9/0") == [0, 1, 3, 2]


def test_all_other_orders_are_equally_likely():
    counts = Counter(tuple(permute_frames(3, f"clip {i}")) for i in range(5000))
    # Five orders, each a binomial of 5000 draws with p = 1/5: mean 1000, standard deviation 28.
    assert len(counts) == 5 and all(abs(count - 1000) < 5 * 28.3 for count in counts.values())


@pytest.mark.parametrize("num_frames", [0, 1])
def test_less_than_two_frames_have_no_other_order(num_frames):
    with pytest.raises(ValueError, match="at least 2"):
        permute_frames(num_frames, "x")


def frames(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def numbers_of(video):
    return video[0][:, 0, 0, 0].int().tolist()


METADATA = {"fps": 2.0, "frames_indices": [0, 5, 10, 15]}


def test_frames_move_and_metadata_stays():
    video = (frames(0, 1, 2, 3), METADATA)
    [shuffled] = shuffle_videos([video], prompt_key="demo/4", step=9)
    assert numbers_of(shuffled) == permute_frames(4, "0/demo/4/9/0")
    assert shuffled[1] is METADATA and shuffled[0].shape == video[0].shape
    # The ordered response trains on what the caller holds.
    assert numbers_of(video) == [0, 1, 2, 3] and METADATA["frames_indices"] == [0, 5, 10, 15]


def test_every_part_of_the_identity_counts():
    def order(prompt_key="demo/4", step=9, seed=0):
        [video] = shuffle_videos([(frames(*range(16)), {})], prompt_key=prompt_key, step=step, seed=seed)
        return tuple(numbers_of(video))

    assert len({order(), order(prompt_key="demo/5"), order(step=10), order(seed=1)}) == 4
    assert order() == order()


def test_each_video_of_a_prompt_has_an_order_of_its_own_and_a_single_frame_stays():
    videos = [(frames(*range(16)), {}), (frames(7), {}), (frames(*range(16)), {})]
    first, single, second = shuffle_videos(videos, prompt_key="demo/4", step=9)
    assert numbers_of(first) != numbers_of(second) and numbers_of(single) == [7]


def test_frames_without_metadata_are_taken_too():
    [shuffled] = shuffle_videos([frames(0, 1)], prompt_key="demo/4", step=9)
    assert shuffled[:, 0, 0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("videos", [None, [], [(frames(7), {})]])
def test_nothing_to_shuffle_is_none(videos):
    assert shuffle_videos(videos, prompt_key="demo/4", step=9) is None
