#include "dpt/io/transformers_config.h"

namespace dpt {

namespace {

// A field, or the default of transformers' DPTConfig where the file leaves it out or has null.
struct Fields {
  const json::Value& object;

  template <class T>
  T get(const char* name, T fallback) const {
    const json::Value* value = object.find(name);
    if (value == nullptr || *value == json::Value(nullptr)) return fallback;
    try {
      return convert(*value, fallback);
    } catch (const json::Error& error) {
      TORCH_CHECK_VALUE(false, "transformers config: field '", name, "': ", error.what());
    }
  }

  // A field that may have one value only.
  template <class T>
  void require(const char* name, T wanted) const {
    require(name, wanted, wanted);
  }
  template <class T>
  void require(const char* name, T wanted, T fallback) const {
    const T got = get(name, fallback);
    TORCH_CHECK_VALUE(got == wanted, "transformers config: ", name, " must be ",
                      json::dump(json::Value(wanted)), ", got ", json::dump(json::Value(got)),
                      "; torchdpt has no such network");
  }

 private:
  static int64_t convert(const json::Value& value, int64_t) { return value.as_int(); }
  static double convert(const json::Value& value, double) { return value.as_double(); }
  static bool convert(const json::Value& value, bool) { return value.as_bool(); }
  static std::string convert(const json::Value& value, const std::string&) {
    return value.as_string();
  }
  static json::Array convert(const json::Value& value, const json::Array&) {
    return value.as_array();
  }
  template <class T>
  static std::array<T, 4> convert(const json::Value& value, const std::array<T, 4>&) {
    const json::Array& list = value.as_array();
    if (list.size() != 4) {
      throw json::Error("wanted four values, got " + std::to_string(list.size()));
    }
    std::array<T, 4> result;
    for (size_t i = 0; i < 4; ++i) result[i] = convert(list[i], T{});
    return result;
  }
};

ReadMode read_mode(const std::string& name) {
  for (const ReadMode mode : {ReadMode::kIgnore, ReadMode::kAdd, ReadMode::kProject}) {
    if (name == to_string(mode)) return mode;
  }
  TORCH_CHECK_VALUE(false,
                    "transformers config: readout_type must be 'ignore', 'add' or 'project', got '",
                    name, "'");
}

// transformers counts how much finer than the patch grid a level is, 4 or 0.5; ours is its stride
// to the image.
int64_t stride_of(double factor, int64_t patch_size) {
  const double stride = factor > 0 ? static_cast<double>(patch_size) / factor : 0;
  TORCH_CHECK_VALUE(stride >= 1 && stride <= 1 << 16 &&
                        stride == static_cast<double>(static_cast<int64_t>(stride)),
                    "transformers config: reassemble_factors must divide patch_size ", patch_size,
                    ", got ", factor);
  return static_cast<int64_t>(stride);
}

// What transformers calls BiT, as it stands in its DPT by default. Its own defaults are others.
void read_bit(const Fields& bit, Config& config) {
  bit.require<std::string>("model_type", "bit");
  bit.require<std::string>("layer_type", "bottleneck", "preactivation");
  if (bit.get<std::string>("global_padding", "") != "same") {
    bit.require<std::string>("global_padding", "SAME", "");
  }
  bit.require("embedding_dynamic_padding", true, false);
  bit.require<int64_t>("embedding_size", 64);
  bit.require<int64_t>("num_channels", 3);
  bit.require<int64_t>("num_groups", 32);
  bit.require<int64_t>("output_stride", 32);
  bit.require<int64_t>("width_factor", 1);
  bit.require<std::string>("hidden_act", "relu");
  bit.require("drop_path_rate", 0.0);
  const json::Array stages{"stage1", "stage2", "stage3"};
  bit.require("out_features", stages, stages);
  json::Array sizes = bit.get("hidden_sizes", json::Array{256, 512, 1024});
  if (sizes.size() > 3) sizes.resize(3);
  TORCH_CHECK_VALUE((sizes == json::Array{256, 512, 1024}),
                    "transformers config: hidden_sizes must begin with 256, 512, 1024, got ",
                    json::dump(sizes), "; torchdpt has no such network");
  const json::Array depths = bit.get("depths", json::Array{3, 4, 6, 3});
  TORCH_CHECK_VALUE(depths.size() == 3, "transformers config: depths must be of three stages, got ",
                    json::dump(depths), "; torchdpt has no such network");
  for (size_t i = 0; i < 3; ++i) config.stage_depths[i] = depths[i].as_int();
}

// Three stages of a BiT before the transformer (Intel/dpt-hybrid-midas).
void read_hybrid(const Fields& fields, Config& config) {
  config.encoder = EncoderKind::kHybrid;
  config.conv_levels = 2;
  config.weight_standardization = WeightStandardization::kVariance;
  config.stage_depths = {3, 4, 9, 0};
  config.strides[0] = 4;
  config.strides[1] = 8;
  config.taps[0] = 0;
  config.taps[1] = 1;
  fields.require<std::string>("readout_type", "project");
  fields.require("neck_ignore_stages", json::Array{0, 1});
  const json::Value* bit = fields.object.find("backbone_config");
  if (bit != nullptr && *bit != json::Value(nullptr)) read_bit({*bit}, config);
}

// Which of transformers' two classes wrote the file; of the files that do not say it, the older.
bool is_segmentation(const Fields& fields) {
  const json::Array names = fields.get("architectures", json::Array{});
  if (names.empty() || names[0] == json::Value("DPTForDepthEstimation")) return false;
  TORCH_CHECK_VALUE(names[0] == json::Value("DPTForSemanticSegmentation"),
                    "transformers config: architectures must be DPTForDepthEstimation or "
                    "DPTForSemanticSegmentation, got ",
                    json::dump(names[0]));
  return true;
}

void read_segmentation(const Fields& fields, Config& config) {
  config.depth_head = false;
  const json::Value* labels = fields.object.find("id2label");
  config.num_classes = labels != nullptr && *labels != json::Value(nullptr)
                           ? std::ssize(labels->as_object())
                           : fields.get<int64_t>("num_labels", 2);
  config.auxiliary_head =
      fields.get("use_auxiliary_head", true) ? AuxiliaryHead::kLast : AuxiliaryHead::kNone;
  config.dropout = fields.get("semantic_classifier_dropout", 0.1);
}

}  // namespace

TransformersConfig parse_transformers_config(const json::Value& value) {
  const Fields fields{value};
  fields.require<std::string>("hidden_act", "gelu");
  fields.require("hidden_dropout_prob", 0.0);
  fields.require("attention_probs_dropout_prob", 0.0);
  fields.require<int64_t>("num_channels", 3);
  fields.require<int64_t>("head_in_index", -1);
  fields.require("add_projection", false);
  const bool hybrid = fields.get("is_hybrid", false);
  const json::Value* backbone = value.find("backbone_config");
  TORCH_CHECK_VALUE(
      hybrid || backbone == nullptr || *backbone == json::Value(nullptr),
      "transformers config: backbone_config must be null, or is_hybrid true, got another backbone; "
      "torchdpt reads the plain ViT networks and the hybrid of this family");

  Config config;
  config.image_size = fields.get<int64_t>("image_size", 384);
  config.patch_size = fields.get<int64_t>("patch_size", 16);
  config.width = fields.get<int64_t>("hidden_size", 768);
  config.heads = fields.get<int64_t>("num_attention_heads", 12);
  config.mlp_width = fields.get<int64_t>("intermediate_size", 3072);
  config.qkv_bias = fields.get("qkv_bias", true);
  config.layer_norm_eps = fields.get("layer_norm_eps", 1e-12);
  config.taps = fields.get("backbone_out_indices", Levels{2, 5, 8, 11});
  config.depth = config.taps[3] + 1;
  config.readout = read_mode(fields.get<std::string>("readout_type", "project"));
  config.channels = fields.get("neck_hidden_sizes", Levels{96, 192, 384, 768});
  const auto factors = fields.get("reassemble_factors", std::array<double, 4>{4, 2, 1, 0.5});
  for (size_t i = hybrid ? 2 : 0; i < 4; ++i) {
    config.strides[i] = stride_of(factors[i], config.patch_size);
  }
  if (hybrid) read_hybrid(fields, config);
  config.features = fields.get<int64_t>("fusion_hidden_size", 256);
  const bool batch_norm = fields.get("use_batch_norm_in_fusion_residual", false);
  config.fusion_norm = batch_norm ? FusionNorm::kBatch : FusionNorm::kNone;
  fields.require("use_bias_in_fusion_residual", !batch_norm);
  if (is_segmentation(fields)) read_segmentation(fields, config);
  config.check();
  const int64_t num_layers = fields.get<int64_t>("num_hidden_layers", 12);
  TORCH_CHECK_VALUE(num_layers >= config.depth && num_layers <= 1024,
                    "transformers config: num_hidden_layers must be in [", config.depth,
                    ", 1024], since backbone_out_indices names that many blocks, got ", num_layers);
  return {config, num_layers};
}

namespace {

void check_transformers_has(const Config& config) {
  const auto refuse = [](bool wrong, const std::string& what) {
    TORCH_CHECK_VALUE(!wrong, "save_checkpoint: transformers has no DPT with ", what,
                      "; use layout 'torchdpt'");
  };
  // Weights of the one do for the other, nearly; whoever saves decides it.
  const auto refuse_unless = [](bool right, const char* field, const char* wanted,
                                const char* why) {
    TORCH_CHECK_VALUE(right, "save_checkpoint: ", why, ", so transformers' DPT has ", field, " \"",
                      wanted, "\" only; make a model of config.replace(", field, "=\"", wanted,
                      "\"), load this one's state dict into it and save that, or use layout "
                      "'torchdpt'");
  };
  refuse(config.encoder == EncoderKind::kResNet, "a resnet as its encoder");
  refuse(config.distilled, "a distillation token");
  refuse(config.metric, "metric depth");
  refuse(config.unit_skip != UnitSkip::kInput, "unit_skip other than \"input\"");
  refuse(!config.fusion_project, "fusion_project = false");
  if (config.depth_head) {
    refuse(!config.head_align_corners, "head_align_corners = false");
    TORCH_CHECK_VALUE(config.head_features == 32,
                      "save_checkpoint: the head of transformers' DPT has 32 hidden features, this "
                      "model has ",
                      config.head_features, "; use layout 'torchdpt'");
  }
  refuse_unless(config.auxiliary_head != AuxiliaryHead::kPenultimate, "auxiliary_head", "last",
                "the auxiliary head (for training) reads the last fused map there");
  if (config.encoder != EncoderKind::kHybrid) return;
  refuse(config.readout != ReadMode::kProject, "a hybrid and another readout than \"project\"");
  refuse(config.conv_levels != 2, "a hybrid and other conv_levels than 2");
  refuse_unless(config.weight_standardization == WeightStandardization::kVariance,
                "weight_standardization", "variance",
                "convolutions are standardised by their variance there");
}

}  // namespace

std::string to_transformers_config(const Config& config) {
  check_transformers_has(config);
  const bool hybrid = config.encoder == EncoderKind::kHybrid;
  json::Array factors;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t stride = config.strides[i];
    if (i < config.conv_levels) {
      factors.emplace_back(1);
    } else if (stride <= config.patch_size) {
      factors.emplace_back(config.patch_size / stride);
    } else {
      factors.emplace_back(static_cast<double>(config.patch_size) / static_cast<double>(stride));
    }
  }
  const bool batch_norm = config.fusion_norm == FusionNorm::kBatch;
  const auto list = [](const auto& values) { return json::Array(values.begin(), values.end()); };
  json::Object object{
      {"architectures",
       json::Array{config.depth_head ? "DPTForDepthEstimation" : "DPTForSemanticSegmentation"}},
      {"model_type", "dpt"},
      {"is_hybrid", hybrid},
      {"image_size", config.image_size},
      {"patch_size", config.patch_size},
      {"num_channels", 3},
      {"hidden_size", config.width},
      {"num_hidden_layers", config.depth},
      {"num_attention_heads", config.heads},
      {"intermediate_size", config.mlp_width},
      {"hidden_act", "gelu"},
      {"hidden_dropout_prob", 0.0},
      {"attention_probs_dropout_prob", 0.0},
      {"qkv_bias", config.qkv_bias},
      {"layer_norm_eps", config.layer_norm_eps},
      {"backbone_config", nullptr},
      {"backbone_out_indices", list(config.taps)},
      {"readout_type", std::string(to_string(config.readout))},
      {"reassemble_factors", factors},
      {"neck_hidden_sizes", list(config.channels)},
      {"fusion_hidden_size", config.features},
      {"head_in_index", -1},
      {"use_batch_norm_in_fusion_residual", batch_norm},
      {"use_bias_in_fusion_residual", !batch_norm},
      {"add_projection", false},
  };
  if (hybrid) {
    const int64_t grid = config.image_size / config.patch_size;
    const at::ArrayRef<int64_t> depths = at::ArrayRef<int64_t>(config.stage_depths).slice(0, 3);
    object["backbone_config"] = json::Object{
        {"model_type", "bit"},      {"layer_type", "bottleneck"},
        {"global_padding", "SAME"}, {"embedding_dynamic_padding", true},
        {"depths", list(depths)},   {"out_features", json::Array{"stage1", "stage2", "stage3"}},
    };
    object["backbone_featmap_shape"] = json::Array{1, 1024, grid, grid};
    object["neck_ignore_stages"] = json::Array{0, 1};
  }
  if (!config.depth_head) {
    json::Object labels, ids;
    for (int64_t i = 0; i < config.num_classes; ++i) {
      const std::string label = "LABEL_" + std::to_string(i);
      labels[std::to_string(i)] = label;
      ids[label] = i;
    }
    object["id2label"] = std::move(labels);
    object["label2id"] = std::move(ids);
    object["semantic_classifier_dropout"] = config.dropout;
    object["use_auxiliary_head"] = config.auxiliary_head == AuxiliaryHead::kLast;
  }
  return json::dump(object, 2) + "\n";
}

}  // namespace dpt
