"""Images and the truth about them: data sets, transforms of image and truth together, and how data sets are mixed."""

from torchdpt.data.batches import Batch, batches
from torchdpt.data.check import Report, check_dataset
from torchdpt.data.folder import FolderDataset
from torchdpt.data.mixing import Draw, Mixture
from torchdpt.data.open import DATASETS, open_dataset
from torchdpt.data.published import (
    ADE20KDataset,
    BlendedMVSDataset,
    HRWSIDataset,
    KITTIDataset,
    KITTISelectionDataset,
    NYUDataset,
    NYUFramesDataset,
    ReDWebDataset,
)
from torchdpt.data.sample import Dataset, Sample
from torchdpt.data.scenes import SceneDataset
from torchdpt.data.transforms import Augmentation

__all__ = [
    "DATASETS",
    "ADE20KDataset",
    "Augmentation",
    "Batch",
    "BlendedMVSDataset",
    "Dataset",
    "Draw",
    "FolderDataset",
    "HRWSIDataset",
    "KITTIDataset",
    "KITTISelectionDataset",
    "Mixture",
    "NYUDataset",
    "NYUFramesDataset",
    "ReDWebDataset",
    "Report",
    "Sample",
    "SceneDataset",
    "batches",
    "check_dataset",
    "open_dataset",
]
