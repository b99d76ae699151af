# Cells for Jupyter, or for an editor that knows "# %%". `await` stands by itself there, as it does here.

# %% An instance for this notebook; run this cell again for a new one
from alloy_async import Alloy, ConsentDeclined

alloy = Alloy("notebook")
await alloy.configure(config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True)

# %% Record something; the cell ends at once
views = [alloy.event(type="web.webpagedetails.pageViews", data={"page": page}) for page in ("home", "help")]

# %% Nothing has left yet
print(alloy.statistics())

# %% Ask, in a cell of its own
await alloy.opt_in(purposes="all")

# %% Each event has its own answer
for view in views:
    print((await view).event_id)

# %% Change your mind: it holds at once
refusal = alloy.opt_in(purposes="none")
try:
    await alloy.event(type="too.late")
except ConsentDeclined as error:
    print(error)
await refusal

# %% Close; the books add up
books = await alloy.aclose()
print(books.accepted, "=", books.delivered, "+", books.refused)
