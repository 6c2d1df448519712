import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { App } from "./app.tsx";
import "./styles/base.css";
import "./styles/shell.css";
import "./styles/runs.css";
import "./styles/run.css";
import "./styles/schedules.css";
import "./styles/trigger.css";

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <App />
    </StrictMode>,
  );
}
