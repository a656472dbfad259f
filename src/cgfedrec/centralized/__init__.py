"""References that see everyone's data: ``fit(interactions)``, ``score(users)``; outside the loop, same evaluation."""
