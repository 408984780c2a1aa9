"""Run the tests that docs/checks.md names, and print each result's difference from its reference.

    python benchmarks/quality/checks.py
    python benchmarks/quality/checks.py tests/samplers/test_diffpir.py::test_a_step_is_that_of_azula

For each test the output has the largest absolute difference between two compared tensors, the
largest value among the tensors, and the test's other comparisons as pytest shows them. The exit
status is pytest's.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKS = """
    samplers/test_likelihoods.py::test_a_step_of_pigdm_is_that_of_azula
    samplers/test_likelihoods.py::test_a_step_of_dps_is_that_of_azula
    samplers/test_likelihoods.py::test_where_A_is_orthogonal_the_annealed_ones_are_deepinvs_calls
    samplers/test_likelihoods.py::test_ald_on_any_operator_is_deepinvs_call_with_its_weight_in_units_of_the_norm
    samplers/test_diffpir.py::test_a_step_is_that_of_azula
    samplers/test_diffpir.py::test_it_is_deepinvs_loop_with_twice_the_prior_and_the_last_estimate
    samplers/test_baselines.py::test_a_backbone_as_a_denoiser_is_what_deepinv_makes_of_the_same_network
    samplers/test_baselines.py::test_dps_is_deepinvs_call_with_the_same_seed
    samplers/test_baselines.py::test_ddrm_is_deepinvs_call_with_the_same_seed
    samplers/test_baselines.py::test_ddpg_is_the_listing_of_the_paper
    samplers/test_baselines.py::test_dmsp_without_its_noise_descends_to_the_minimum_of_its_energy
    samplers/test_baselines.py::test_bicubic_upsampling_is_pillows
    samplers/test_ddnm.py::test_it_is_the_papers_algorithm_with_matrices
    samplers/test_daps.py::test_samples_have_the_moments_that_the_affine_recursion_gives
    samplers/test_daps.py::test_langevin_steps_sample_the_posterior
    samplers/test_pnp_dm.py::test_it_is_the_papers_algorithm_with_matrices
    samplers/test_pnp_dm.py::test_its_samples_have_the_stationary_density_of_the_gibbs_chain
    samplers/test_red_diff.py::test_it_is_adam_on_the_energy_of_a_gaussian_prior
    samplers/test_dds.py::test_the_sampler_is_the_listing_with_matrices
    samplers/test_dds.py::test_samples_have_the_moments_that_the_affine_recursion_gives
    samplers/test_adir.py::test_the_sampler_equals_the_papers_listing_given_the_same_noise
    samplers/test_adir.py::test_samples_have_the_mean_and_covariance_that_the_affine_recursion_gives
    samplers/test_adir.py::test_without_guidance_the_samples_tend_to_the_prior_as_steps_grow
    samplers/test_adir.py::test_algorithm_1_is_exact_where_the_posterior_is_as_wide_as_the_noise
    samplers/test_adir.py::test_without_noise_or_guidance_the_sampler_is_the_closed_form_of_ddim_on_a_gaussian_prior
    tasks/test_operators.py::test_A_equals_the_dense_matrix_of_its_definition
    tasks/test_operators.py::test_A_adjoint_is_the_adjoint_of_A
    tasks/test_operators.py::test_norm_is_the_largest_singular_value
    tasks/test_operators.py::test_A_dagger_is_the_pseudo_inverse
    tasks/test_operators.py::test_downsampling_is_deepinvs
    tasks/test_operators.py::test_the_default_centre_is_pillows
    tasks/test_operators.py::test_the_field_s_operators_are_those_of_scipy_and_numpy
    tasks/test_operators.py::test_sr4_of_the_authors_image_is_their_y_up_to_rounding
    tasks/test_operators.py::test_box4_explains_the_authors_deblurring_y_up_to_noise_of_10
    diffusion/test_goldens.py::test_schedule_tables_equal_the_reference_to_1e_12
    diffusion/test_goldens.py::test_diffusion_step_equals_the_reference
    backbones/adm/test_conversion.py::test_outputs_are_the_references_to_2e_5
    backbones/adm/test_conversion.py::test_outputs_of_other_configurations_are_the_references
    backbones/test_process.py::test_a_network_of_googles_layout_predicts_what_diffusers_does
    backbones/test_process.py::test_eps_is_what_diffusers_ddim_makes_of_the_same_output
    scoring/test_metrics.py::test_psnr_is_scikit_images
    scoring/test_metrics.py::test_ssim_is_scikit_images
    scoring/test_metrics.py::test_musiq_is_pyiqas_network_on_the_file_in_the_hub_folder
    scoring/test_metrics.py::test_lpips_is_pyiqas_network_and_zero_for_equal_images
    scoring/test_deep.py::test_the_cats_eye_has_the_distances_of_another_implementation
    scoring/test_deep.py::test_the_features_are_the_last_of_each_resolution_of_timms_network
    bridges/test_deepinv.py::test_the_bridge_gives_what_our_own_task_gives
    harness/tables/test_statistics.py::test_the_signed_rank_p_is_scipys_exact_one
    harness/tables/test_statistics.py::test_holm_is_that_of_statsmodels
""".split()


class Differences:
    """Pytest plugin that records the values that each test compares."""

    def __init__(self) -> None:
        self.test = ""
        self.tensors: dict[str, tuple[float, float]] = {}
        self.numbers: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Remember the test that the next comparisons belong to, without its parameters."""
        self.test = item.nodeid.partition("[")[0]

    def pytest_assertion_pass(self, item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
        """Record an assert that compares two numbers, such as `0.0012 < 0.02`."""
        shown = expl.splitlines()[0].strip()
        if (
            len(shown) < 200
            and re.search(r" (<=?|>=?|==) ", shown)
            and re.search(r"\d\.\d|\de-", shown)
        ):
            self.numbers[self.test].add(shown)

    def noting(self, compare: Callable[..., None]) -> Callable[..., None]:
        """Return `compare` as a function that also records the largest difference."""

        def noted(actual: Any, expected: Any, *arguments: Any, **options: Any) -> None:
            compare(actual, expected, *arguments, **options)
            a, b = (
                np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
                for value in (actual, expected)
            )
            before = self.tensors.get(self.test, (0.0, 0.0))
            found = (float(np.abs(a.astype(float) - b).max()), float(np.abs(b).max()))
            self.tensors[self.test] = (max(before[0], found[0]), max(before[1], found[1]))

        return noted


def main() -> int:
    noted = Differences()
    torch.testing.assert_close = noted.noting(torch.testing.assert_close)
    np.testing.assert_allclose = noted.noting(np.testing.assert_allclose)
    tests = sys.argv[1:] or [str(REPOSITORY / "tests" / name) for name in CHECKS]
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "enable_assertion_pass_hook=true",
        "--rootdir",
        str(REPOSITORY),
    ]
    status = pytest.main([*words, *tests], plugins=[noted])
    for test in dict.fromkeys([*noted.tensors, *noted.numbers]):
        print(test)
        if test in noted.tensors:
            print(
                "    largest difference {:.2g}, largest value {:.3g}".format(*noted.tensors[test])
            )
        for shown in sorted(noted.numbers[test]):
            print(f"    {shown}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
