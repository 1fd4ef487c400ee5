"""Our phantom beside a published one: the signal-domain reference of Chakwizira et al. (2022), to within its noise."""

import re

import nibabel as nib
import numpy as np
import pytest
from dsc_curves import shared_data

from reperfuse.phantoms.artery import ArterialInput
from reperfuse.phantoms.dsc import K_TISSUE, voxel_phantom

TR_S, TE_S, S0, SNR, CBV = 1.243, 0.029, 100.0, 20.0, 4.0  # as published with the data; their headers carry none
AIF = ArterialInput("gamma_variate", arrival_s=20.0, width_s=3.0, shape=3.0, recirculation=0.0)
DELAYS, DISPERSIONS = {"low": 1.0, "high": 6.0}, {"low": 1.5, "high": 4.5}


@pytest.mark.realdata
@pytest.mark.parametrize("cbf", [10, 30, 50, 70])
def test_mean_signal_of_the_published_reference_is_ours_to_within_its_noise(cbf):
    files = sorted(shared_data("perfusion/dro_delay_dispersion").glob(f"St_*_cbf_{cbf}.nii.gz"))
    assert len(files) == 5
    for path in files:
        dispersed, spread, late, lag = re.findall(
            r"disp_(\d)_exponential_lvl_(\w+)_delay_(\d)_lvl_(\w+)_resf", path.name
        )[0]
        delay, dispersion = int(late) * DELAYS[lag], int(dispersed) * DISPERSIONS[spread]
        ours = voxel_phantom(
            cbf, 60 * CBV / cbf, delay, n_frames=161, tr_s=TR_S, te_s=TE_S, s0=S0, aif=AIF, dispersion_s=dispersion
        )
        signal = ours.signal.data.ravel()
        if not dispersion:
            # Theirs is a sum over frames, which counts the jump of the residue function for half a frame too much.
            signal = signal * np.exp(-TE_S * K_TISSUE * cbf / 6000 * TR_S / 2 * AIF(ours.signal.frame_times_s - delay))
        theirs = nib.load(path).get_fdata().reshape(100, 161).mean(0)
        noise = S0 / SNR / np.sqrt(100)
        apart = theirs - np.sqrt(signal**2 + (S0 / SNR) ** 2)  # the mean magnitude of a signal under Rician noise
        assert apart.std() == pytest.approx(noise, rel=0.25), path.name
        assert abs(apart.mean()) < 4 * noise / np.sqrt(161) and np.abs(apart).max() < 5 * noise, path.name
