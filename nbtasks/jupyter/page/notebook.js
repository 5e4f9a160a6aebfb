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

/** Put the final picture where the notebook holds the live panel. @param {Feed} feed */
function heal(feed, /** @type {{html: string, text: string}} */ picture) {
  for (const [outputs, k] of viewsOf(feed.model).get(feed.model_id) || []) {
    const data = { "text/html": picture.html, "text/plain": picture.text };
    outputs.set(k, { ...outputs.get(k).toJSON(), data });
  }
}

/** Id of a widget -> where the notebook holds views of it: outputs of a cell, and which of them. */
function viewsOf(/** @type {any} */ model) {
  const cells = notebook(model);
  /** @type {Map<string, [any, number][]>} */
  const views = new Map();
  for (let c = 0; c < (cells?.length || 0); c += 1) {
    const outputs = cells.get(c).outputs;
    for (let k = 0; k < (outputs?.length || 0); k += 1) {
      const id = outputs.get(k).data?.[VIEW_MIME]?.model_id;
      if (id) views.set(id, [...(views.get(id) || []), [outputs, k]]);
    }
  }
  return views;
}

/**
 * Whenever the notebook is saved, keep in its file what is shown just now.
 *
 * A notebook that is opened when its kernel is gone has views of widgets that nobody knows: Jupyter
 * would show an error. So the file holds the widget itself as long as it stands in the notebook (when
 * its tasks are over, a picture takes the place of a cell's panel), where Jupyter's own setting "Save
 * Widget State Automatically" puts it, too.
 *
 * @param {Feed} feed @returns {() => void}
 */
function keep(feed) {
  const context = feed.model.widget_manager?.context;
  if (!context?.saveState || !context?.model?.setMetadata) return () => {};
  const save = (/** @type {any} */ _, /** @type {string} */ state) => {
    if (state === "started") file(feed, context.model);
  };
  context.saveState.connect(save);
  return () => context.saveState.disconnect(save);
}

/** @param {Feed} feed @param {any} book  The notebook's model. */
function file(feed, book) {
  const widgets = book.getMetadata("widgets") || {};
  const before = widgets[STATE_MIME]?.state || {};
  const shown = viewsOf(feed.model);
  // Not those of ours that stand nowhere any more: their cell has run again, or they are over.
  const state = Object.fromEntries(
    Object.entries(before).filter(([id, each]) => !isOurs(each) || shown.has(id)),
  );
  const room = feed.model_id in state || Object.values(state).filter(isOurs).length < KEPT.panels;
  if (shown.has(feed.model_id) && room) state[feed.model_id] = widgetOf(feed);
  const { [STATE_MIME]: _, ...others } = widgets;
  if (Object.keys(state).length) {
    const told = { version_major: 2, version_minor: 0, state };
    book.setMetadata("widgets", { ...others, [STATE_MIME]: told });
  } else if (Object.keys(others).length) book.setMetadata("widgets", others);
  else if (STATE_MIME in widgets) book.deleteMetadata("widgets");
}

/** @param {any} widget  As a notebook's file has it. */
function isOurs(widget) {
  return Boolean(widget?.state?.snapshot?.saved);
}

/** The widget as a notebook's file has it. @param {Feed} feed */
function widgetOf(feed) {
  const { model } = feed;
  const names = ["_model_name", "_model_module", "_model_module_version", "_view_name"];
  names.push("_view_module", "_view_module_version", "_anywidget_id", "_esm", "_css");
  const state = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  return {
    model_name: state._model_name,
    model_module: state._model_module,
    model_module_version: state._model_module_version,
    state: { ...state, snapshot: feed.memory() },
  };
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
