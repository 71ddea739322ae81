"""Colour maps as tables of RGB, evenly spaced from far to near, with straight lines between."""

from __future__ import annotations

import numpy as np

# inferno: matplotlib (CC0). turbo: Mikhailov 2019 (Apache 2.0). Each fifth of 256 entries. spectral: ColorBrewer
# (Apache 2.0), its 11 colours from blue to red.
_HEX = {
    "inferno": """
00000402020c0504170a072210092d160b391e0c45260c512f0a5b380962400a67490b6a510e6c59106e61136e69166e71196e
781c6d801f6c88226a902568982766a02a63a82e5fb0315bb73557bf3952c63d4dcc4248d34743d94d3ddf5337e45a31e9612b
ed6925f1711ff47918f78212f98b0bfa9407fb9d07fca60cfcb014fbba1ffac42af8cd37f6d746f4e156f2ea69f2f27df5f992
fcffa4""",
    "turbo": """
30123b36215f3b2f803f3e9c424bb54559cb4666dd4773eb4680f6458cfd4099ff38a5fb2fb2f427bee91fc9dd1ad4d018ddc2
1ae4b622ebaa2ff19b3ff68a52fa7a65fd6979fe598bff4b9cfe40a9fb39b7f735c3f134d0ea34dbe236e5d938eecf3af5c53a
faba39fdae35fea130fe932afc8423f9751df46617ef5811e84b0ce14109d83706ce2d04c32503b71d02a916019b0f018b0902
7a0403""",
    "spectral": "5e4fa23288bd66c2a5abdda4e6f598ffffbffee08bfdae61f46d43d53e4f9e0142",
    "gray": "000000ffffff",
}
COLORMAPS = {
    name: np.frombuffer(bytes.fromhex(text), dtype=np.uint8).reshape(-1, 3).astype(np.float64)
    for name, text in _HEX.items()
}


def apply_colormap(values: np.ndarray, name: str) -> np.ndarray:
    """Colours of values.

    Args:
        values: [...], in [0, 1].
        name: inferno, turbo, spectral or gray.

    Returns:
        [..., 3], uint8.

    Raises:
        ValueError: if there is no such colour map.
    """
    if name not in COLORMAPS:
        raise ValueError(f"colormap must be one of {', '.join(COLORMAPS)}, got {name!r}")
    table = COLORMAPS[name]
    # 4096 steps: far finer than 8 bits, and a lookup instead of three interpolations.
    places = np.linspace(0, len(table) - 1, 4096)
    fine = np.stack([np.interp(places, np.arange(len(table)), channel) for channel in table.T], axis=1)
    return np.round(fine).astype(np.uint8)[np.round(values * 4095).astype(np.int32)]
