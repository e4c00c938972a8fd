"""Folders of pictures to begin from: a request a file, each with its mask, in natural order."""

import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.request import Request
from txt2img.request.input_image import STDIN, ImagePaths, ImageRef
from txt2img.system.files import reason
from txt2img.system.text import shown

# Of files that are taken for pictures; what they really are is found out when they are read.
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif", ".bmp"),
    *(".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".jp2", ".j2k"),
    *(".qoi", ".pcx", ".sgi", ".dds", ".psd", ".icns", ".xbm", ".heic", ".heif"),
)
MASK = "_mask"  # ends the name of a mask beside its picture


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder."""

    folder: Path
    pictures: tuple[Path, ...]  # in natural order, without the masks beside them
    by_stem: Mapping[str, Path]  # of pictures and masks, the first of each name

    def mask_of(self, picture: Path) -> Path | None:
        """The mask of a picture: X of another folder, or X_mask, of any format; None if none is."""
        is_beside = os.path.samefile(self.folder, picture.parent)
        same = None if is_beside else self.by_stem.get(picture.stem)
        return same or self.by_stem.get(f"{picture.stem}{MASK}")


def list_pictures(folder: Path) -> Listing:
    """The pictures of a folder, by their names' endings. BadFile."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name[:1] != "." and Path(entry.name).suffix.lower() in SUFFIXES
                if not entry.is_dir()
            ]
    except OSError as error:
        raise BadFile(f"cannot read {shown(folder)}: {reason(error)}") from error
    paths = [folder / name for name in sorted(names, key=natural_key)]
    by_stem: dict[str, Path] = {}
    for path in paths:
        by_stem.setdefault(path.stem, path)
    pictures = tuple(path for path in paths if not _is_mask(path, by_stem))
    return Listing(folder, pictures, by_stem)


def pictures_at(path: str) -> list[str]:
    """The pictures of a folder by their paths; another path as it is. BadFile."""
    if (folder := folder_of(ImageRef(path))) is None:
        return [path]
    if not (pictures := list_pictures(folder).pictures):
        raise BadFile(_none_in(folder))
    return [*map(str, pictures)]


def _none_in(folder: Path) -> str:
    return f"{shown(folder)} has no pictures, such as .png or .jpg files"


def _is_mask(path: Path, by_stem: Mapping[str, Path]) -> bool:
    return path.stem.endswith(MASK) and path.stem.removesuffix(MASK) in by_stem


def natural_key(name: str) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """What sorts names as people do: a2 before a10, capitals beside small letters."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return tuple((0, int(d)) if d else (1, text.casefold()) for d, text in parts), name


def folder_of(ref: ImageRef | None) -> Path | None:
    """The folder that a picture's path names; None if it names none. Standard input is none."""
    if ref is None or ref.hash or ref.name == STDIN:
        return None
    path = Path(ref.name).expanduser()
    return path if path.is_dir() else None


@dataclass
class ImageFolders:
    """Requests, those that name a folder of pictures once for each; can be iterated repeatedly.

    With `errors`, what cannot be drawn is kept there instead of raised.
    """

    requests: Iterable[Request]
    paths: ImagePaths  # takes the notes
    errors: dict[Hashable, Txt2imgError] | None = None
    _listings: dict[Path, Listing] = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        """The folders that pictures begin from."""
        return [folder for one in self.requests if (folder := folder_of(one.image))]

    @property
    def pattern(self) -> str:
        """The names of the results, after their pictures'; empty unless all have one of a folder.

        Prompts and seeds stand in them where a picture is drawn several times.
        """
        requests = [*self.requests]
        if not all(folder_of(request.image) for request in requests):
            return ""
        prompts = len({request.prompt for request in requests})
        seeds = len({(request.prompt, request.seed) for request in requests}) > prompts
        seeds = seeds or any(request.count > 1 for request in requests)
        return "{image}" + "-{prompt}" * (prompts > 1) + "-{seed}" * seeds

    def __iter__(self) -> Iterator[Request]:
        """Every request, each of one picture. BadRequest, BadFile."""
        for number, request in enumerate(self.requests):
            folder = folder_of(request.image)
            if folder is None and folder_of(request.mask) is None:
                yield request
                continue
            for path in self._pictures(number, request, folder):
                try:
                    one = self._with_mask(request, path, is_listed=folder is not None)
                except (BadRequest, BadFile) as error:
                    self._keep(error, number, path)
                else:
                    yield one

    def _pictures(self, number: int, request: Request, folder: Path | None) -> Sequence[Path]:
        """The pictures that a request begins from. BadFile."""
        if folder is None:
            return [] if request.image is None else [Path(request.image.name)]
        try:
            listing = self._listing(folder)
            if not listing.pictures:
                raise BadFile(_none_in(folder))
        except BadFile as error:
            self._keep(error, number, folder)
            return []
        if request.mask is None:
            self._note_masks(listing)
        return listing.pictures

    def _with_mask(self, request: Request, path: Path, is_listed: bool) -> Request:
        """The request of one picture, with its mask from a folder. BadRequest, BadFile."""
        mask, folder = request.mask, folder_of(request.mask)
        if folder is not None:
            found = self._listing(folder).mask_of(path)
            if found is None:
                raise BadFile(_no_mask(path, folder))
            mask = ImageRef(str(found))
        elif mask is None and (found := self._listing(path.parent).mask_of(path)):
            mask = ImageRef(str(found))
        return replace(
            request, image=ImageRef(str(path)) if is_listed else request.image, mask=mask
        )

    def _note_masks(self, listing: Listing) -> None:
        """Tell of the masks beside pictures, which nobody asked for by name."""
        masks = sum(listing.mask_of(path) is not None for path in listing.pictures)
        if masks:
            missing = len(listing.pictures) - masks
            rest = f"; {missing} have none and are redrawn as a whole" if missing else ""
            self.paths.note(
                f"{shown(listing.folder)}: {masks} of its pictures have a mask beside them, "
                f"X{MASK} beside X{rest}"
            )

    def _listing(self, folder: Path) -> Listing:
        if folder not in self._listings:
            self._listings[folder] = list_pictures(folder)
        return self._listings[folder]

    def _keep(self, error: Txt2imgError, number: int, path: Path) -> None:
        """Keep an error, or raise it if errors are not kept."""
        if self.errors is None:
            raise error
        self.errors["folder", number, str(path)] = error


def _no_mask(picture: Path, folder: Path) -> str:
    names = " or ".join(shown(f"{picture.stem}{ending}.png") for ending in ("", MASK))
    return f"no mask for {shown(picture.name)} in {shown(folder)}: name it {names}"
