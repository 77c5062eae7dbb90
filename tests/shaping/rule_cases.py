"""Worked values of the length rules: groups of four, base score = verdict, six decimals.

Each case is (rule, constants, extra, {group: bonus}); a group stands in ``GROUPS``. The numbers come from the published
formulas, worked out apart from this package; constants are scaled to these short lengths where a case names them.
"""

GROUPS = {
    "A": ([100, 200, 300, 400], [1, 1, 0, 1]),
    "B": ([100, 200, 300, 400], [0, 0, 0, 0]),
    "C": ([100, 200, 300, 400], [1, 1, 1, 1]),
    "D": ([250, 250, 250, 250], [1, 1, 0, 1]),
    "E": ([100, 200, 300, 400], [0, 1, 1, 0]),
    "band": ([300, 350, 400, 600], [1, 1, 0, 1]),
    "band_one_right": ([300, 350, 400, 600], [0, 1, 0, 0]),
}

ZEROS = [0, 0, 0, 0]

OVERLONG = [0, 0, -0.5, -1]
EXACT = [-0.045, -0.015, -0.015, -0.045]
KIMI = [0.5, 0.166667, -0.166667, -0.5]
NO_THINK = [-0.55, -0.55, -0.6, -0.6]

STATELESS = [
    (
        "kimi_k1_5",
        {},
        {},
        {"A": KIMI, "B": [0, 0, -0.166667, -0.5], "C": KIMI, "D": ZEROS, "E": [0, 0.166667, -0.166667, -0.5]},
    ),
    (
        "soft_overlong",
        {"max_length": 400, "buffer": 200},
        {},
        {"A": OVERLONG, "B": OVERLONG, "C": OVERLONG, "D": [-0.25] * 4, "E": OVERLONG},
    ),
    # Beyond the limit of 300: (300 - 200 - 400) / 200.
    ("soft_overlong", {"max_length": 300, "buffer": 200}, {}, {"A": [0, -0.5, -1, -1]}),
    ("soft_overlong", {"max_length": 300, "buffer": 200, "floor": False}, {}, {"A": [0, -0.5, -1, -1.5]}),
    ("soft_overlong", {"max_length": 400, "buffer": 200, "gate": "right_only"}, {}, {"A": [0, 0, 0, -1]}),
    ("l1_exact", {}, {"target_length": [250] * 4}, {"A": EXACT, "B": EXACT, "C": EXACT, "D": ZEROS, "E": EXACT}),
    (
        "l1_max",
        {},
        {"target_length": [250] * 4},
        {
            "A": [-0.455, -0.485, 0, -0.545],
            "B": ZEROS,
            "C": [-0.455, -0.485, -0.515, -0.545],
            "D": [-0.5, -0.5, 0, -0.5],
            "E": [0, -0.485, -0.515, 0],
        },
    ),
    (
        "efficient_reasoning",
        {"alpha": 0.1},
        {},
        {
            "A": [-0.025558, -0.043358, 0, -0.079188],
            "B": ZEROS,
            "C": [-0.020724, -0.039002, -0.060998, -0.079276],
            "D": [-0.05, -0.05, 0, -0.05],
            "E": [0, -0.026894, -0.073106, 0],
        },
    ),
    (
        "o1_pruner",
        {"weight": 2, "clip_low": None, "clip_high": None},
        {"ref_length": [250] * 4, "ref_accuracy": [0.75] * 4},
        {
            "A": [2, 0.75, -1.666667, 0.125],
            "B": [0, -1.25, -1.666667, -1.875],
            "C": [2, 0.75, 0.333333, 0.125],
            "D": [0.5, 0.5, -1.5, 0.5],
            "E": [0, 0.75, 0.333333, -1.875],
        },
    ),
    # Weight 5: 1.5 + 1.25, 0.25 + 1.25, -1/6 - 3.75 clipped at -2, -0.375 + 1.25.
    ("o1_pruner", {}, {"ref_length": [250] * 4, "ref_accuracy": [0.75] * 4}, {"A": [2.75, 1.5, -2, 0.875]}),
    (
        "alp",
        {"beta": 0.001},
        {},
        {
            "A": [-0.075, -0.15, -0.225, -0.3],
            "B": [-0.025, -0.05, -0.075, -0.1],
            "C": [-0.1, -0.2, -0.3, -0.4],
            "D": [-0.1875] * 4,
            "E": [-0.05, -0.1, -0.15, -0.2],
        },
    ),
    (
        "laser",
        {"target_length": 200},
        {},
        {"A": [0.5, 0.5, 0, 0], "B": ZEROS, "C": [0.5, 0.5, 0, 0], "D": ZEROS, "E": [0, 0.5, 0, 0]},
    ),
    (
        "shorter_better",
        {"beta": 0.001},
        {},
        {
            "A": [0, -0.1, -0.2, -0.3],
            "B": [-0.15, -0.05, -0.05, -0.15],
            "C": [0, -0.1, -0.2, -0.3],
            "D": ZEROS,
            "E": [-0.1, 0, -0.1, -0.2],
        },
    ),
    # The released weight of 2 adds 1 to a right answer.
    ("shorter_better", {"alpha": 2.0}, {}, {"A": [1, 0.9, -0.2, 0.7]}),
    (
        "grpo_lead",
        {},
        {},
        {
            "A": [0.04461, 0.010971, -1, -0.053093],
            "B": [-1] * 4,
            "C": [0.059815, 0.019554, -0.019179, -0.056439],
            "D": [0, 0, -1, 0],
            "E": [-1, 0.035988, -0.034738, -1],
        },
    ),
    # The three shortest average to 200 tokens.
    ("grpo_lead", {"skip_below_tokens": 200}, {}, {"A": [0, 0, -1, 0]}),
    (
        "grpo_lead",
        {"skip_below_tokens": 199},
        {},
        {"A": [0.04461, 0.010971, -1, -0.053093], "C": [0.059815, 0.019554, -0.019179, -0.056439]},
    ),
    (
        "diet",
        {},
        {},
        {
            "A": [0.1875, 0.0625, 0, -0.1875],
            "B": ZEROS,
            "C": [0.25, 0.083333, -0.083333, -0.25],
            "D": ZEROS,
            "E": [0, 0.125, -0.125, 0],
        },
    ),
    (
        "diet",
        {"form": "target"},
        {"target_length": [150] * 4},
        {
            "A": [0.439388, 0.244104, 0, -0.537029],
            "C": [0.58585, 0.325472, -0.195283, -0.716039],
            "E": [0, 0.162736, -0.097642, 0],
        },
    ),
    (
        "adapt_think",
        {},
        {"no_think": [1, 1, 0, 0], "ref_accuracy": [0.6] * 4},
        {"A": NO_THINK, "B": NO_THINK, "C": NO_THINK, "D": NO_THINK, "E": NO_THINK},
    ),
    (
        "smart_thinker",
        {},
        {},
        {"A": [0, -0.125, 0, -0.375], "B": ZEROS, "C": ZEROS, "D": ZEROS, "E": [0, 0, -0.666667, 0]},
    ),
    (
        "linear_pass_rate",
        {},
        {},
        {
            "A": [-0.046875, -0.09375, -0.140625, -0.1875],
            "B": ZEROS,
            "C": [-0.0625, -0.125, -0.1875, -0.25],
            "D": [-0.1875] * 4,
            "E": [-0.03125, -0.0625, -0.09375, -0.125],
        },
    ),
    # Equal inputs and turns cost 0.2 times the pass rate of 0.75 more.
    (
        "linear_pass_rate",
        {},
        {"input_length": [900] * 4, "num_turns": [2] * 4},
        {"A": [-0.196875, -0.24375, -0.290625, -0.3375]},
    ),
    (
        "group_relative",
        {},
        {},
        {
            "A": [0.044444, 0.011111, 0, -0.055556],
            "B": ZEROS,
            "C": [0.05, 0.016667, -0.016667, -0.05],
            "D": ZEROS,
            "E": [0, 0.05, -0.05, 0],
        },
    ),
    # Mean right lengths are 233.3 and 250: neither exceeds 250, both exceed 230.
    ("group_relative", {}, {"profile_length": [250] * 4}, {"A": ZEROS, "C": ZEROS}),
    ("group_relative", {}, {"profile_length": [230] * 4}, {"A": [0.044444, 0.011111, 0, -0.055556]}),
    (
        "group_relative",
        {"form": "miles"},
        {},
        {
            "A": [0, -0.012667, 0, -0.146],
            "B": ZEROS,
            "C": [0, 0, -0.052286, -0.109429],
            "D": ZEROS,
            "E": [0, 0, -0.016222, 0],
        },
    ),
    (
        "video_r1_band",
        {},
        {},
        {
            "A": [0, 0, 0, 0.2],
            "B": ZEROS,
            "C": [0, 0, 0, 0.2],
            "D": ZEROS,
            "E": ZEROS,
            "band": [0, 0.2, 0, 0],
            "band_one_right": ZEROS,
        },
    ),
    (
        "cosine",
        {"max_length": 400},
        {},
        {
            "A": [0.926777, 0.75, -0.073223, 0.5],
            "B": [-0.426777, -0.25, -0.073223, 0],
            "C": [0.926777, 0.75, 0.573223, 0.5],
            "D": [0.654329, 0.654329, -0.154329, 0.654329],
            "E": [-0.426777, 0.75, 0.573223, 0],
        },
    ),
    # Past L_max = 200: the clamped curve stays at its end, the other one is back at its start at 400.
    ("cosine", {"max_length": 200}, {}, {"C": [0.75, 0.5, 0.5, 0.5]}),
    ("cosine", {"max_length": 200, "clamp": False}, {}, {"C": [0.75, 0.5, 0.75, 1]}),
    ("vision_think", {"threshold": 0.5}, {"direct": [1, 0, 0, 0]}, {"A": [-0.1, -0.1, 0, -0.1]}),
    ("vision_think", {"threshold": 0.2}, {"direct": [1, 0, 0, 0]}, {"A": [0, -0.1, 0, -0.1]}),
    # rho = 1/3 lies below 0.5, so only the direct answer costs; at 0.2 only the tool does.
    ("vision_think", {"threshold": 0.5, "form": "paper"}, {"direct": [1, 0, 0, 0]}, {"A": [-0.1, 0, 0, 0]}),
    ("vision_think", {"threshold": 0.2, "form": "paper"}, {"direct": [1, 0, 0, 0]}, {"A": [0, -0.1, 0, -0.1]}),
    # A and D: difficulty 3.25, budget 96; C: 1, budget 96; E: 5.5, budget 256; B: none right.
    (
        "pixel_think",
        {},
        {},
        {
            "A": [-0.008, -0.208, 0, -0.608],
            "B": ZEROS,
            "C": [-0.008, -0.208, -0.408, -0.608],
            "D": [-0.308, -0.308, 0, -0.308],
            "E": [0, 0, -0.088, 0],
        },
    ),
    # Uncertainty 1 allows 281 tokens.
    ("pixel_think", {}, {"uncertainty": [1] * 4}, {"E": [0, 0, -0.038, 0]}),
    # Budgets 96 + 160 * 0.25 = 136 and 96 + 160 * 0.5 = 176.
    ("pixel_think", {"form": "linear"}, {}, {"A": [0, -0.128, 0, -0.528], "E": [0, -0.048, -0.248, 0]}),
    (
        "gr3",
        {"alpha": 0.5},
        {},
        {
            "A": [-0.166667, -0.285714, 0, -0.444444],
            "B": ZEROS,
            "C": [-0.166667, -0.285714, -0.375, -0.444444],
            "D": [-0.333333, -0.333333, 0, -0.333333],
            "E": [0, -0.285714, -0.375, 0],
        },
    ),
    (
        "reasoning_length",
        {"free_length": 150, "max_length": 350},
        {},
        {
            "A": [0, -0.0125, 0, -0.05],
            "B": ZEROS,
            "C": [0, -0.0125, -0.0375, -0.05],
            "D": [-0.025, -0.025, 0, -0.025],
            "E": [0, -0.0125, -0.0375, 0],
        },
    ),
    (
        "reasoning_length",
        {"free_length": 150, "max_length": 350, "form": "additive"},
        {},
        {"A": [0.05, 0.0375, 0.0125, 0], "B": [0.05, 0.0375, 0.0125, 0], "D": [0.025] * 4},
    ),
    (
        "length_outlier",
        {"threshold": 1},
        {},
        {"A": [0, 0, 0, -0.1], "B": ZEROS, "C": [0, 0, 0, -0.1], "D": ZEROS, "E": ZEROS},
    ),
    (
        "overlong_pass_rate",
        {"max_length": 400, "buffer": 200},
        {},
        {"A": [0, 0, 0, -0.75], "B": ZEROS, "C": [0, 0, -0.5, -1], "E": [0, 0, -0.25, 0]},
    ),
    (
        "context_cost",
        {},
        {},
        {
            "A": [0, -0.295102, 0, -0.582652],
            "B": ZEROS,
            # 1 - exp(-0.5), 1 - exp(-1), 1 - exp(-1.5).
            "C": [0, -0.393469, -0.632121, -0.77687],
        },
    ),
    # A batch of one group: it is the top one.
    (
        "grpo_lambda",
        {"alpha": 0.1},
        {},
        {"A": [-0.025558, -0.043358, 0, -0.079188], "B": ZEROS, "D": [-0.05, -0.05, 0, -0.05]},
    ),
]

LASER_STATE = {"targets": [150, 250, 400], "histogram": [[0] * 14] * 3, "updates": 0}

WITH_STATE = [
    # (rule, constants, state, step, {group: bonus})
    (
        "laser_d",
        {},
        LASER_STATE,
        0,
        {"A": [0.5, 0, 0, 0], "B": ZEROS, "C": [0.5, 0, 0, 0], "D": ZEROS, "E": [0, 0.5, 0, 0]},
    ),
    (
        "laser_de",
        {},
        LASER_STATE,
        0,
        {"A": [0.5, 0, 0.5, 0], "B": ZEROS, "C": [0.5, 0, 0, 0], "D": [0, 0, 0.5, 0], "E": [0, 0.5, 0, 0.5]},
    ),
    (
        "hapo",
        {},
        {"shortest": {"prompt": 200}},
        0,
        {
            "A": [0.707107, 0, -0.707107, -0.7],
            "B": [0, 0, -0.707107, -1],
            "C": [0.707107, 0, -0.7, -0.7],
            "D": [-0.382683] * 4,
            "E": [0, 0, -0.7, -1],
        },
    ),
    # Linear, h = 200: 1 - 0.5, 0, -(300 - 220) / 200 for the wrong one, -0.9 held at -0.7.
    ("hapo", {"form": "linear"}, {"shortest": {"prompt": 200}}, 0, {"A": [0.5, 0, -0.4, -0.7]}),
    ("hapo", {}, {"shortest": {}}, 0, {"A": ZEROS, "B": ZEROS}),
    (
        "short_rl",
        {"length_tolerance": 100},
        {"best_accuracy": 0.0},
        0,
        {
            "A": [0.5, 0.5, 0, -0.5],
            "B": ZEROS,
            "C": [0.5, 0.5, -0.166667, -0.5],
            "D": [0.5, 0.5, 0, 0.5],
            "E": [0, 0.5, 0.5, 0],
        },
    ),
    # Accuracy 0.75 against a best of 0.8 is within the tolerance, against 0.81 it is not.
    ("short_rl", {"length_tolerance": 100}, {"best_accuracy": 0.8}, 0, {"A": [0.5, 0.5, 0, -0.5]}),
    ("short_rl", {"length_tolerance": 100}, {"best_accuracy": 0.81}, 0, {"A": ZEROS}),
    ("a_dlp", {}, {"price": 0.001}, 0, {"A": [-0.1, -0.2, -0.3, -0.4], "B": [-0.1, -0.2, -0.3, -0.4]}),
    ("diet", {}, {}, 50, {"A": [0.09375, 0.03125, 0, -0.09375]}),
    ("diet", {}, {}, 100, {"A": ZEROS}),
    ("diet", {}, {}, 150, {"A": ZEROS}),
    ("kimi_k1_5", {"warmup_steps": 10}, {}, 9, {"A": ZEROS}),
    ("kimi_k1_5", {"warmup_steps": 10}, {}, 10, {"A": KIMI}),
]
