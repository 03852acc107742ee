// What went wrong, in words for somebody who has never seen the protocol.

import { LostError, RpcError } from "./link.js";

function wait(seconds) {
  if (!(seconds > 0)) {
    return "in a moment";
  }
  return seconds < 90 ? `in ${Math.ceil(seconds)} s` : `in ${Math.ceil(seconds / 60)} min`;
}

export function explain(error, personaName) {
  if (error instanceof LostError) {
    return "The connection was lost before the answer was there.";
  }
  if (!(error instanceof RpcError)) {
    throw error;
  }
  // Some messages are sentences of their own.
  const message = error.message.replace(/\.$/, "");
  const later = wait(error.data.retry_after_s);
  switch (error.reason) {
    case "llm_unavailable":
      return `The language model does not answer (${message}). Start it, or ask whoever runs this server.`;
    case "persona_unavailable":
      return `${personaName} is resting and can talk again ${later}.`;
    case "persona_not_found":
      return "This persona is gone.";
    case "overloaded":
      return `The server has too much to do. Try again ${later}.`;
    case "rate_limited":
      return `That was too fast. Try again ${later}.`;
    case "deadline_exceeded":
      return "The answer took too long.";
    case "shutting_down":
      return "The server is shutting down. Try again once it is back.";
    default:
      return `That did not work: ${message}.`;
  }
}
