"""What tells whether to trust a posterior, and mends it: the part of `Posterior` that runs chains."""

from __future__ import annotations

from typing import Any, Self, cast

from vi_reparam.posterior.diagnosis import Diagnosis, diagnose
from vi_reparam.posterior.passes import require_all_rows
from vi_reparam.posterior.refine import refine
from vi_reparam.posterior.relabel import relabel

NUM_CHAIN_DRAWS = 4_000


class Trusting:
    """Refined and relabelled draws, and a diagnosis."""

    def refine(self, num_draws: int = NUM_CHAIN_DRAWS, seed: Any = 0, *, progress: bool = True) -> Self:
        """Draws of the posterior itself, by Hamiltonian Monte Carlo from this guide's draws, in its coordinates.

        Many chains move at once, and may jump to a new draw of the guide. They go on until R-hat is below 1.01, or for
        600 iterations each. What is given back draws from what the chains kept; it has a density of its own no more, so
        its ELBO, k-hat and log evidence are NaN, and its verdict rests on R-hat and the number of effective draws.

        Args:
            num_draws: how many to keep at least.
            seed: int, or what the backend takes for a key.
            progress: whether to show a progress bar.

        Returns:
            A posterior; ``record["refined"]`` has the figures, and by how much means and sds moved.

        Raises:
            ArgumentError: if `num_draws` is no count.
            SiteError: for discrete or masked latents.
        """
        require_all_rows(cast("Any", self), "refine")
        return cast("Self", refine(cast("Any", self), num_draws, seed, progress=progress))

    def relabel(self, plate: str, by: str | None = None, *, num_draws: int = NUM_CHAIN_DRAWS, seed: Any = 0) -> Self:
        """Draws whose elements along a plate are in order, so that each component has one name.

        The components of a mixture may come in any order; with them in all orders, means say nothing. Here each draw's
        elements are sorted by one latent, and all latents in the plate, and weights on a simplex of its size, go along.

        Args:
            plate: its name.
            by: the latent to sort by, one number for each element; the only one of these unless given.
            num_draws: how many draws to keep.
            seed: int, or what the backend takes for a key.

        Returns:
            A posterior that draws from these. It has no density, so its ELBO and k-hat are NaN; its verdict is
            this one's.

        Raises:
            ArgumentError: for an unknown plate, or a latent that cannot be sorted by.
            SiteError: for discrete or masked latents.
        """
        return cast("Self", relabel(cast("Any", self), plate, by, num_draws, seed))

    def diagnose(self, seed: Any = 0, *, progress: bool = True) -> Diagnosis:
        """How far a few moves of Hamiltonian Monte Carlo take the guide's own draws, site by site.

        Were the guide the posterior, they would leave all means and sds where they are. Up to 256 chains make 50 moves
        in the guide's coordinates. This sees what k-hat cannot say: whether heavy weights go with means and sds that
        are off, and of which latents. Print what it gives.

        Args:
            seed: int, or what the backend takes for a key.
            progress: whether to show a progress bar.

        Returns:
            The diagnosis: a table with a grade by site, a grade of all, and what to do next. Discrete or masked
            latents do not move; then it has no table, and says so.
        """
        require_all_rows(cast("Any", self), "diagnose")
        return diagnose(cast("Any", self), seed, progress=progress)
