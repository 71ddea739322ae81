"""Images and the truth about them: data sets, transforms of image and truth together, and how data sets are mixed."""

from torchdpt.data.sample import Dataset, Sample
from torchdpt.data.scenes import SceneDataset

__all__ = ["Dataset", "Sample", "SceneDataset"]
