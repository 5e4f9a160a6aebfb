// The notebook around the panel, and the door.

//
// JupyterLab and Notebook 7 hand their widget manager over, and through it the notebook. Elsewhere
// there is none, and nothing below does anything.

/** The cells of the notebook. @param {any} model */
function notebook(model) {
  return model.widget_manager?.context?.model?.cells;
}

/**
 * Why the kernel cannot be heard: "" (it can, as far as is known here), "cut" or "gone".
 *
 * The class says so of a view that is made too late. (It does not of one that is there already:
 * anywidget takes ipywidgets' own listener away.) A kernel that dies or is shut down says nothing.
 */
function silence(/** @type {Feed} */ feed, /** @type {HTMLElement} */ el) {
  if (el.closest(".jupyter-widgets-disconnected")) return "gone";
  const session = feed.model.widget_manager?.context?.sessionContext;
  if (!session) return "";
  const kernel = session.session?.kernel;
  feed.kernel ??= kernel?.id;
  if (!kernel || kernel.status === "dead" || kernel.id !== feed.kernel) return "gone";
  return ["connecting", "disconnected"].includes(kernel.connectionStatus) ? "cut" : "";
}

/** Put the final picture where the notebook holds the live panel. @param {any} model */
async function heal(model, /** @type {{html: string, text: string}} */ picture) {
  const cells = notebook(model);
  for (let c = 0; c < (cells?.length || 0); c += 1) {
    const outputs = cells.get(c).outputs;
    for (let k = 0; k < (outputs?.length || 0); k += 1) {
      const output = outputs.get(k);
      if (!(await shows(output, model)) || outputs.get(k) !== output) continue;
      const data = { "text/html": picture.html, "text/plain": picture.text };
      outputs.set(k, { ...output.toJSON(), data });
    }
  }
}

/** Whether an output of the notebook holds a view of this very widget. */
async function shows(/** @type {any} */ output, /** @type {any} */ model) {
  const id = output.data?.[VIEW_MIME]?.model_id;
  if (!id) return false;
  try {
    // A widget does not know its own id here, but what it holds is held by nobody else.
    const other = await model.widget_manager.get_model(id);
    return other.get("snapshot") === model.get("snapshot");
  } catch {
    return false; // a widget of a kernel that is no more
  }
}

// One feed for each widget: anywidget calls this function once for each.
export default () => {
  const feed = new Feed();
  return {
    initialize: (/** @type {{ model: any }} */ { model }) => feed.listen(model),
    render: (/** @type {{ el: HTMLElement }} */ { el }) => {
      const view = new View(feed, el);
      return () => view.remove();
    },
  };
};
